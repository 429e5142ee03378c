"""Calls that wait for a person: what the step asks about them, and what it does with the answers."""

from typing import Any

from agents import RunResult, RunState
from agents.items import ToolApprovalItem

from timestep.agents.ask import is_question
from timestep.agents.durable.local_tools import arguments_of
from timestep.agents.durable.step import DurableStep, Run
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict
from timestep.errors import TimestepError


async def decided(step: DurableStep, result: RunResult) -> RunState[Any]:
    """The state to go on from, with every waiting call decided; ``step.decide`` may end the run by an exception."""
    state = result.to_state()
    waiting = [(item, _pending(step, item)) for item in result.interruptions]
    asked = [call for _, call in waiting if _standing(step, call) is None]
    decisions = await step.decide(asked) if asked else {}
    for item, call in waiting:
        standing = _standing(step, call) if call not in asked else None
        decision = standing or decisions.get(call.position)
        if decision is None:
            raise TimestepError(f"No decision came for the call of '{call.tool}' at '{call.position}'.")
        if standing is None:
            step.granted[call.position] = (call.kind, decision)
        _apply(state, item, call, decision)
    for call in asked:
        if decisions[call.position].always:
            step.always[call.agent, call.tool] = decisions[call.position]
    return state


def _standing(step: DurableStep, call: PendingCall) -> Decision | None:
    """What was decided for the rest of the step."""
    return step.always.get((call.agent, call.tool)) if call.kind is Kind.APPROVAL else None


def _apply(state: RunState[Any], item: ToolApprovalItem, call: PendingCall, decision: Decision) -> None:
    """Always call by call: a decision for the rest of the step is ours to remember, across runs within runs."""
    if decision.verdict is Verdict.REJECT:
        why = f": {decision.text}" if decision.text else "."
        state.reject(item, rejection_message=f"A person rejected this call{why}")
    elif decision.verdict in (Verdict.APPROVE, Verdict.ANSWER):
        state.approve(item)
    else:
        raise TimestepError(f"'{decision.verdict}' decides nothing about '{call.tool}', which waits for {call.kind}.")


def _pending(step: DurableStep, item: ToolApprovalItem) -> PendingCall:
    raw = item.raw_item if isinstance(item.raw_item, dict) else item.raw_item.model_dump(mode="json", exclude_none=True)
    call_id = str(raw.get("call_id") or raw.get("id"))
    tools = [tool for tool in item.agent.tools if tool.name == item.tool_name]
    return PendingCall(
        position=_run_of(step, item, call_id).positions[call_id],
        kind=Kind.QUESTION if any(map(is_question, tools)) else Kind.APPROVAL,
        call_id=call_id,
        agent=item.agent.name,
        tool=str(item.tool_name),
        arguments=arguments_of(item.raw_item),
    )


def _run_of(step: DurableStep, item: ToolApprovalItem, call_id: str) -> Run:
    """The run whose call it is. Each run has clones of its own, so the agent says which: ids may repeat."""
    for run in step.runs.values():
        if run.graph is not None and run.graph.holds(item.agent) and call_id in run.positions:
            return run
    raise TimestepError(f"The call of '{item.tool_name}' that waits for a person belongs to no run of the step.")
