"""A tool whose every call is one recorded unit, at the place of the call in the model's response."""

import copy
import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from agents import FunctionTool
from agents.agent_tool_state import get_agent_tool_state_scope, peek_agent_tool_run_result
from agents.tool import Tool, _FailureHandlingFunctionToolInvoker

from timestep.agents.ask import is_question
from timestep.agents.durable.declarations import runs_once
from timestep.agents.durable.guardrails import scoped
from timestep.agents.durable.outputs import as_json, from_json
from timestep.agents.durable.step import CallRecord, Run, Scope, Stop, present
from timestep.agents.durable.tool_tries import ToolTries, failure_handled
from timestep.agents.record.ledger import Begin, Ledger, Recorded
from timestep.agents.record.units import fingerprint, unit
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict, call_digest
from timestep.agents.tools import keyed
from timestep.errors import TimestepError

KIND = "tool-call"


def durable_tool(tool: Tool, run: Run) -> Tool:
    """A copy of a function tool whose every call is a recorded unit; any other tool as it is."""
    if not isinstance(tool, FunctionTool):
        return tool
    durable = copy.copy(tool)
    durable.on_invoke_tool = _Invoker(tool)
    # Within the unit instead: what a call comes to by its end of time is on the record too.
    durable.timeout_seconds = None
    names: list[str] = []
    durable.tool_input_guardrails = scoped(tool.tool_input_guardrails, _of_call, names)
    durable.tool_output_guardrails = scoped(tool.tool_output_guardrails, _of_call, names)
    policy = tool.needs_approval
    if callable(policy):

        async def needs_approval(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
            needed = await policy(context, arguments, call_id)
            if needed:
                run.unattended.discard(call_id)  # models give an id to one call after another
            else:
                run.unattended.add(call_id)
            return needed

        durable.needs_approval = needs_approval
    return durable


def idempotency_key(step_id: str, position: str) -> str:
    """sha256 (hex) of what a call is: equal whenever the same call is made again, whatever process makes it."""
    return hashlib.sha256(f"{step_id}\n{position}".encode()).hexdigest()


def cut_call(unit: Recorded) -> PendingCall:
    """A call that an earlier process began and did not finish, as what a person is asked."""
    asked = unit.request or {}
    return PendingCall(
        position=unit.position,
        kind=Kind.CUT,
        call_id=str(asked.get("call_id", unit.position)),
        agent=str(asked.get("agent", "")),
        tool=unit.name,
        arguments=str(asked.get("arguments", "")),
    )


def _of_call(data: Any) -> str:
    """Where the guardrails of a tool's call stand."""
    return present().positions[data.context.tool_call_id]


class _Invoker(_FailureHandlingFunctionToolInvoker):
    """The invoker of a durable tool: of the SDK's own class, which lets approval policies see prepared arguments."""

    def __init__(self, tool: FunctionTool) -> None:
        self._tool = tool
        self._invoke_tool_impl = getattr(tool.on_invoke_tool, "_invoke_tool_impl", tool.on_invoke_tool)

    def __agents_bind_function_tool__(self, function_tool: FunctionTool) -> "_Invoker":
        return self

    async def __call__(self, ctx: Any, input: str) -> Any:
        run = present()
        return await ToolCall(self._tool, run, run.positions[ctx.tool_call_id], ctx, input).answer()


@dataclass(frozen=True)
class _Interrupted:
    """What an agent that serves as a tool returned while a call below it waits for a person: not its result."""

    output: Any


@dataclass(frozen=True)
class _OpenEnded:
    """The ledger, for a call that may return without having come to its end."""

    ledger: Ledger

    async def begin(self, call: Begin) -> Recorded | None:
        return await self.ledger.begin(call)

    def known(self, position: str) -> Recorded | None:
        return self.ledger.known(position)

    async def finish(self, position: str, result: Any) -> None:
        if not isinstance(result, _Interrupted):
            await self.ledger.finish(position, result)


@dataclass
class ToolCall:
    """One call of a tool; ``context`` has the id of the call, the agent, and the SDK's item of the call or None."""

    tool: FunctionTool
    run: Run
    position: str
    context: Any
    arguments: str
    executed: bool = False
    error: BaseException | None = None

    async def answer(self) -> Any:
        """What the call returned, from the record where it had finished."""
        step, started = self.run.step, time.perf_counter()
        record = CallRecord(self.position, "tool", self.tool.name)
        try:
            result = await self._recorded()
        except Stop:
            raise
        except BaseException:
            record.seconds = time.perf_counter() - started
            step.note(record)
            raise
        if isinstance(result, _Interrupted):
            return result.output
        record.seconds = result["seconds"]
        for below in result.get("calls", ()):
            step.note(CallRecord(**below))
        step.note(record)
        failure_handled(self.context, note=result.get("failed", False))
        if self.executed:
            step.events.publish(
                "call.finished", self.position, kind=KIND, name=self.tool.name, seconds=record.seconds, replayed=False
            )
        if not self.run.path:
            output = result["output"]
            content = output if isinstance(output, str) else json.dumps(output)
            step.messages.append({"role": "tool", "tool_call_id": self.context.tool_call_id, "content": content})
        return from_json(self.tool, result)

    async def _recorded(self) -> Any:
        """The unit's result. An error of the record, which is none of the tool, stops the step."""
        begin, given = await self._begin()
        # An agent that serves as a tool may stop for a person below it.
        ledger: Any = _OpenEnded(self.run.step.ledger) if self.tool._is_agent_tool else self.run.step.ledger

        async def call() -> Any:
            self.executed = True
            try:
                return await self._execute() if given is None else {"output": given, "seconds": 0.0}
            except BaseException as error:
                self.error = error
                raise

        try:
            return await unit(ledger, begin, call)
        except Exception as error:
            if error is self.error:
                raise
            raise Stop(error) from error

    async def _begin(self) -> tuple[Begin, str | None]:
        """How the call begins, and its result where a person has given that."""
        step, digest = self.run.step, call_digest(self.tool.name, self.arguments)
        asked = {"tool": self.tool.name, "arguments": self.arguments}
        begin = Begin(
            self.position,
            KIND,
            self.tool.name,
            fingerprint(asked),
            once=self._once(),
            request=asked | {"agent": self.context.agent.name, "call_id": self.context.tool_call_id},
        )
        kind, decision = step.granted.get(self.position, (None, None))
        # To a question: nothing runs, and that may begin as often as it likes.
        given = (decision.text or "") if kind is Kind.QUESTION and decision is not None else None
        if (cut := step.ledger.known(self.position)) is not None and cut in step.ledger.cut():
            # Decided of the call on the record. Where changes were accepted, this may be one of other arguments,
            # and stands in its place; one of another tool has no use for its result.
            of = cut_call(cut)
            settled = await self._settled(of)
            if settled.verdict is Verdict.RESULT and cut.name == begin.name:
                given = settled.text or ""
            return replace(begin, consume=(Kind.CUT, of.digest)), given
        if given is not None:
            return begin, given
        if kind is Kind.APPROVAL and begin.once:
            return replace(begin, consume=(Kind.APPROVAL, digest)), None
        return begin, None

    def _once(self) -> bool:
        """Whether the call, cut in the middle, must not run again by itself.

        An agent that serves as a tool does nothing itself: its calls do, and have units of their own.
        """
        if self.tool._is_agent_tool or is_question(self.tool):
            return False
        approved = self.tool.needs_approval is not False and self.context.tool_call_id not in self.run.unattended
        return approved or runs_once(self.tool)

    async def _settled(self, call: PendingCall) -> Decision:
        """What a person says of this call, which a crash has cut; asked up front, as a rule."""
        step = self.run.step
        decision = step.decisions.get(self.position)
        if decision is None:
            try:
                decision = (await step.decide([call]))[self.position]
            except Exception as error:
                raise Stop(error) from error
        if decision.verdict is Verdict.FAIL:
            why = f": {decision.text}" if decision.text else ""
            raise Stop(
                TimestepError(f"The call of '{self.tool.name}' at '{self.position}' was cut, and decided to fail{why}.")
            )
        return decision

    async def _execute(self) -> Any:
        step, started = self.run.step, time.perf_counter()
        step.events.publish("call.started", self.position, kind=KIND, name=self.tool.name, attempt=step.attempt)
        # An agent's calls end by themselves, and may wait for people.
        seconds = None if self.tool._is_agent_tool else step.policy.tool_timeout
        place = partial(Scope, step, f"{self.position}/", plain=self.tool._is_agent_tool)
        tries = ToolTries(self.tool, self.context, self.arguments, place, seconds)
        with keyed(idempotency_key(step.step_id, self.position)):
            output = await tries.output()
        if self._is_interrupted():
            return _Interrupted(output)
        result = as_json(self.tool, output) | {"seconds": round(time.perf_counter() - started, 6)}
        # Answered from the record, the call doesn't go through those below it: it knows them itself.
        below = [asdict(call) for call in step.below(self.position)]
        return (
            result | ({"calls": below} if below else {}) | ({"failed": True} if failure_handled(self.context) else {})
        )

    def _is_interrupted(self) -> bool:
        if not self.tool._is_agent_tool or self.context.tool_call is None:
            return False
        nested = peek_agent_tool_run_result(self.context.tool_call, scope_id=get_agent_tool_state_scope(self.context))
        return bool(getattr(nested, "interruptions", None))
