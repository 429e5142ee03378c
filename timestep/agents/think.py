"""A step in inference mode: an agent runs to its final output, people are asked where it needs them."""

from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, Protocol

from agents import MaxTurnsExceeded, ModelSettings, RunResult
from agents.items import ToolApprovalItem
from prefect.exceptions import Pause

from storage.store import ObjectStore
from timestep.agents.durable.run import CallPolicy, DurableStep, run_durably
from timestep.agents.durable.step import CallRecord
from timestep.agents.durable.tool_calls import cut_call
from timestep.agents.plain import plain
from timestep.agents.record.attempt import Attempt
from timestep.agents.record.away import outlived
from timestep.agents.record.sessions import NotYourTurnError, SessionTurn
from timestep.agents.record.step_trace import StepTrace
from timestep.agents.record.waiting import Decision, Kind, PendingCall
from timestep.agents.registry import AgentRegistry
from timestep.agents.resolve import ModelResolver
from timestep.agents.respond import agent_output, of_step, respond, spoken
from timestep.agents.responses import conversations
from timestep.agents.responses.request import ResponseRequest
from timestep.agents.tools import StepContext
from timestep.agents.types import CallFigures, InferenceSettings, Mode, StepOutput, ToolCall, ToolChoice
from timestep.errors import NotFoundError, TimestepError, UsageError
from timestep.settings import Settings

Input = str | list[dict[str, Any]]
MOST_CALLS = 200  # whose figures a step's output has: it is small JSON, and the trace has them all


@dataclass
class Thinking:
    """One step's request to think, all of it plain data."""

    step_id: str
    input: Input
    agent: str
    session_id: str | None
    model: str | None
    max_turns: int
    inference: InferenceSettings


class People(Protocol):
    """Those who decide, and the way to wait for them."""

    async def decisions(self, calls: list[PendingCall]) -> dict[str, Decision]:
        """What is decided of these calls, by position; the others are asked for."""
        ...

    async def suspend(self, calls: list[PendingCall]) -> NoReturn:
        """End this process, by Prefect's exception, until these calls are decided."""
        ...

    async def wake(self, step_id: str) -> None:
        """Let another step go on, which was suspended until its turn in its session."""
        ...


@dataclass
class _Ran:
    """What came of the run of an agent, whatever engine ran it; ``items`` are added to the session."""

    final_output: Any
    tool_calls: list[ToolCall] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    response: list[dict[str, Any]] | None = None  # its output items, where a request of the Responses API was answered


async def think(
    request: Thinking,
    settings: Settings,
    store: ObjectStore,
    registry: AgentRegistry,
    attempt: Attempt,
    people: People,
) -> tuple[StepOutput, dict[str, Any]]:
    """Run the agent; returns the step's output and its trace.

    Raises:
        NotFoundError: no such agent or model.
        UsageError: nothing was asked.
        NotYourTurnError: an earlier step of the session isn't done.
        TimestepError: the model or the agent failed; the trace so far is in storage.
        Pause: Prefect's; the run is suspended until people have decided.
    """
    asked = None if request.inference.request is None else of_step(request.inference.request)
    if asked is not None:
        request = replace(request, input=spoken(asked))
    step = DurableStep(
        request.step_id,
        resolve=ModelResolver(settings, registry, attempt.database, request.model),
        ledger=attempt.ledger,
        events=attempt.events,
        policy=CallPolicy.of(request.inference),
        attempt=attempt.lease.attempt,
    )
    facts = {
        "agent": request.agent,
        "mode": Mode.INFERENCE.value,
        "session_id": request.session_id,
        "input": request.input,
        "model": request.model,
    }
    trace = StepTrace(store, step, attempt.started, facts)

    async def decide(calls: list[PendingCall]) -> dict[str, Decision]:
        decisions = await people.decisions(calls)
        waiting = [call for call in calls if call.position not in decisions]
        if waiting:
            await trace.waiting(f"It waits for a person: {', '.join(call.tool for call in waiting)}.")
            attempt.events.publish("step.waiting", status=_status(waiting), calls=_shown(waiting))
            await attempt.events.flush()
            await people.suspend(waiting)
        return decisions

    step.decide = decide
    try:
        async with (
            SessionTurn(attempt.database, request.session_id, attempt.ledger, wake=people.wake) as session,
            outlived(attempt.events.flush),
        ):
            # Within the turn: a step that is started again keeps its place in the session.
            if asked is not None and asked.agent is None:
                output = _output(request, step, await _responded(step, asked, settings))
            else:
                output = await _run(request, store, registry, step, session)
            if asked is not None and asked.conversation_id is not None:
                await _converse(attempt, asked, output.response or [])
    except BaseException as error:
        if not isinstance(error, Pause | NotYourTurnError):
            await trace.ended(error)
        raise
    output.seconds = round((datetime.now(UTC) - attempt.started).total_seconds(), 3)
    output.artifacts["trace"] = await trace.completed(output)
    return output, trace.content


async def _run(
    request: Thinking, store: ObjectStore, registry: AgentRegistry, step: DurableStep, session: SessionTurn
) -> StepOutput:
    orchestrated = registry.orchestrated(request.agent)
    # A task or a flow of ControlFlow may know by itself what there is to do.
    needs_input = orchestrated is None or orchestrated.kind == "agent"
    if needs_input and not (request.input.strip() if isinstance(request.input, str) else request.input):
        raise UsageError("A step in inference mode needs an input. Say what the agent should do.")
    if cut := [cut_call(unit) for unit in step.ledger.cut()]:
        # Before anything else: what follows may depend on it.
        step.decisions = await step.decide(cut)
    items: list[Any] = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    try:
        ran = await _with_engine(request, store, registry, step, [*await session.history(), *items])
    except MaxTurnsExceeded as error:
        raise TimestepError(
            f"Agent '{request.agent}' did not finish within {request.max_turns} turns. Raise max_turns."
        ) from error
    await session.add([*items, *ran.items])
    if request.inference.request is not None:
        ran.response = agent_output(request.step_id, request.agent, ran.items)
    return _output(request, step, ran)


def _with_engine(
    request: Thinking, store: ObjectStore, registry: AgentRegistry, step: DurableStep, items: list[Any]
) -> Awaitable[_Ran]:
    """Run the agent by the engine that it was written for."""
    context = StepContext(request.step_id, request.agent, store, workspace=f"workspaces/{request.agent}")
    options: dict[str, Any] = {
        "context": context,
        "max_turns": request.max_turns,
        "settings": _model_settings(request.inference),
    }
    orchestrated = registry.orchestrated(request.agent)
    if orchestrated is not None:
        return _orchestrated(step, orchestrated.what, items, options)
    return _agents_sdk(step, registry.get(request.agent), items, options)


async def _agents_sdk(step: DurableStep, agent: Any, items: list[Any], options: dict[str, Any]) -> _Ran:
    step.resolve(agent)  # a model that there is not is named before anything is asked
    result = await run_durably(step, agent, items, **options)
    return _Ran(result.final_output, tool_calls(result), _items(result))


async def _converse(attempt: Attempt, asked: ResponseRequest, answer: list[dict[str, Any]]) -> None:
    """What was asked and answered belongs to the conversation now, however often the step comes here."""
    items = [*asked.added, *answer]
    with suppress(NotFoundError):  # it was deleted meanwhile
        await conversations.append(attempt.database, asked.conversation_id or "", items, asked.behind)


async def _responded(step: DurableStep, asked: ResponseRequest, settings: Settings) -> _Ran:
    items = await respond(step, asked, settings)
    texts = [part.get("text", "") for item in items if item["type"] == "message" for part in item["content"]]
    calls = [
        ToolCall(name=item["name"], arguments=item["arguments"]) for item in items if item["type"] == "function_call"
    ]
    return _Ran("".join(texts), calls, response=items)


async def _orchestrated(step: DurableStep, what: Any, items: list[Any], options: dict[str, Any]) -> _Ran:
    from timestep.agents.controlflow import run_controlflow

    ran = await run_controlflow(step, what, items, **options)
    return _Ran(ran.final_output, ran.tool_calls, [{"role": "assistant", "content": ran.text}])


def _status(calls: list[PendingCall]) -> str:
    feedback = all(call.kind is Kind.QUESTION for call in calls)
    return "waiting_feedback" if feedback else "waiting_approval"


def _shown(calls: list[PendingCall]) -> list[dict[str, Any]]:
    return [{**call.model_dump(mode="json"), "digest": call.digest} for call in calls]


def _output(request: Thinking, step: DurableStep, ran: _Ran) -> StepOutput:
    # The version that answered, where the model was local; the last one, should it have changed in between.
    models = [call for call in step.calls if call.kind == "model"]
    answered = [call.name for call in models if "/" not in call.position.rpartition("/")[0]] or [
        call.name for call in models
    ]
    return StepOutput(
        step_id=request.step_id,
        mode=Mode.INFERENCE,
        agent=request.agent,
        model=answered[-1] if answered else request.model,
        output=plain(ran.final_output),
        turns=len(models),
        tool_calls=ran.tool_calls,
        response=ran.response,
        forced=any(call.forced for call in step.calls),
        usage=step.usage(),
        calls=[_figures(call) for call in step.calls[:MOST_CALLS]],
    )


def _figures(call: CallRecord) -> CallFigures:
    usage = call.usage or {}
    return CallFigures(
        position=call.position,
        kind=call.kind,
        name=call.name,
        seconds=call.seconds,
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        cost=call.cost,
    )


def tool_calls(result: RunResult) -> list[ToolCall]:
    """The run's tool calls in order, each with what came back."""
    items = _items(result)
    outputs = {item.get("call_id"): str(item["output"]) for item in items if item.get("type") == "function_call_output"}
    return [
        ToolCall(name=str(item["name"]), arguments=str(item["arguments"]), output=outputs.get(item["call_id"]))
        for item in items
        if item.get("type") == "function_call"
    ]


def _items(result: RunResult) -> list[dict[str, Any]]:
    """What the run has said and done, without its stops for people."""
    said = [item for item in result.new_items if not isinstance(item, ToolApprovalItem)]
    return [dict(item.to_input_item()) for item in said]


def deadline(inference: InferenceSettings) -> timedelta | None:
    """How long people have for a decision; None for ever."""
    hours = inference.approval_deadline_hours
    return None if hours is None else timedelta(hours=hours)


def _model_settings(inference: InferenceSettings) -> ModelSettings:
    choice = inference.tool_choice
    return ModelSettings(
        temperature=inference.temperature,
        top_p=inference.top_p,
        max_tokens=inference.max_tokens,
        tool_choice=None if choice is ToolChoice.AUTO else choice.value,
        extra_args=None if inference.seed is None else {"seed": inference.seed},
    )
