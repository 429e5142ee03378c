"""A step in inference mode: an agent runs to its final output, and its trace is always written."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from agents import Agent, MaxTurnsExceeded, Model, ModelSettings, RunResult
from agents.extensions.memory import SQLAlchemySession
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from storage.references import Reference
from storage.store import ObjectStore
from storage.traces import TraceStore
from timestep.agents.durable import DurableStep, run_durably
from timestep.agents.ledger import Begin, Ledger, open_ledger
from timestep.agents.registry import AgentRegistry
from timestep.agents.tools import StepContext
from timestep.agents.types import InferenceSettings, Mode, StepOutput, ToolCall, ToolChoice, Usage
from timestep.agents.units import fingerprint, unit
from timestep.database.engine import Database
from timestep.errors import TimestepError, UsageError
from timestep.models.files import BUILT_IN
from timestep.models.providers import declared_models, is_local, local_model, remote_model
from timestep.models.registry import ModelRegistry
from timestep.models.routing import PREFIX
from timestep.settings import Settings

Input = str | list[dict[str, Any]]


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


async def think(
    request: Thinking, settings: Settings, store: ObjectStore, registry: AgentRegistry
) -> tuple[StepOutput, dict[str, Any]]:
    """Run the agent; returns the step's output and its trace.

    Raises:
        NotFoundError: no such agent or model.
        UsageError: nothing was asked.
        TimestepError: the model or the agent failed; the trace so far is in storage.
    """
    started = datetime.now(UTC)
    step = DurableStep(request.step_id, resolve=_resolver(request, settings, registry))
    trace: dict[str, Any] = {
        "version": 1,
        "step_id": request.step_id,
        "agent": request.agent,
        "mode": Mode.INFERENCE.value,
        "session_id": request.session_id,
        "input": request.input,
        "started": started.isoformat(),
        "model": request.model,
    }
    try:
        async with open_ledger(settings, store, request.step_id) as step.ledger:
            output = await _run(request, settings, store, registry, step)
    except BaseException as error:
        trace |= {"status": "failed" if isinstance(error, Exception) else "cancelled", "error": f"{error}"}
        try:
            await _write(trace, step, store, started)
        except TimestepError as failure:
            error.add_note(f"Its trace could not be written: {failure}")
        raise
    trace |= {"status": output.status, "error": None, "output": output.output, "usage": output.usage.model_dump()}
    trace["model"] = output.model
    output.artifacts["trace"] = await _write(trace, step, store, started)
    return output, trace


async def _run(
    request: Thinking, settings: Settings, store: ObjectStore, registry: AgentRegistry, step: DurableStep
) -> StepOutput:
    agent = registry.get(request.agent)
    if not (request.input.strip() if isinstance(request.input, str) else request.input):
        raise UsageError("A step in inference mode needs an input. Say what the agent should do.")
    model_name, _ = step.resolve(agent)
    await _declare_new_agents(settings, registry)
    context = StepContext(request.step_id, agent.name, store, workspace=f"workspaces/{agent.name}")
    items: list[Any] = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    try:
        async with _Session(request, settings, step.ledger) as session:
            result = await run_durably(
                step,
                agent,
                [*await session.history(), *items],
                context=context,
                max_turns=request.max_turns,
                settings=_model_settings(request.inference),
            )
            if result.interruptions:
                names = ", ".join(str(item.name) for item in result.interruptions)
                raise TimestepError(f"A call needs a person's approval, which this version can't ask for: {names}.")
            await session.add([*items, *(item.to_input_item() for item in result.new_items)])
    except MaxTurnsExceeded as error:
        raise TimestepError(
            f"Agent '{agent.name}' did not finish within {request.max_turns} turns. Raise max_turns."
        ) from error
    # The version that answered, where the model was local; the last one, should it have changed in between.
    answered = [
        call.name for call in step.calls if call.kind == "model" and "/" not in call.position.rpartition("/")[0]
    ]
    return _output(request, step, result, agent, answered[-1] if answered else model_name)


async def _declare_new_agents(settings: Settings, registry: AgentRegistry) -> None:
    """Give agents that were added to a file after the service's start their own models."""
    local = {name: base for name in registry.names() if (base := registry.base(name)) is not None}
    if not local or settings.model_server_url is None or settings.database_url is None:
        return
    missing = set(local) - await declared_models(settings.model_server_url)
    if missing:
        database = Database(settings.database_url)
        try:
            for name in missing:
                await ModelRegistry(database).declare(name, local[name])
        finally:
            await database.close()


def _output(request: Thinking, step: DurableStep, result: RunResult, agent: Agent[Any], model_name: str) -> StepOutput:
    final = result.final_output
    usage = result.context_wrapper.usage
    return StepOutput(
        step_id=request.step_id,
        mode=Mode.INFERENCE,
        agent=agent.name,
        model=model_name,
        output=final.model_dump(mode="json") if isinstance(final, BaseModel) else final,
        turns=sum(call.kind == "model" for call in step.calls),
        tool_calls=tool_calls(result),
        forced=any(call.forced for call in step.calls),
        usage=Usage(
            requests=usage.requests,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.total_tokens,
        ),
    )


def tool_calls(result: RunResult) -> list[ToolCall]:
    """The run's tool calls in order, each with what came back."""
    items: list[dict[str, Any]] = [dict(item.to_input_item()) for item in result.new_items]
    outputs = {item.get("call_id"): str(item["output"]) for item in items if item.get("type") == "function_call_output"}
    return [
        ToolCall(name=str(item["name"]), arguments=str(item["arguments"]), output=outputs.get(item["call_id"]))
        for item in items
        if item.get("type") == "function_call"
    ]


def _resolver(request: Thinking, settings: Settings, registry: AgentRegistry) -> Any:
    known = frozenset([*registry.names(), *BUILT_IN])

    def resolve(agent: Agent[Any]) -> tuple[str, Model]:
        model = request.model or agent.model
        if request.model is None and agent.name in registry.names() and registry.base(agent.name) is not None:
            # A local model belongs to its agent: what it serves now, on whatever base it was declared with.
            model = PREFIX + agent.name
        if model is None:
            model = PREFIX + settings.model
        if not isinstance(model, str):
            return type(model).__name__, model
        if is_local(model, known):
            return PREFIX + model.removeprefix(PREFIX), local_model(model, settings)
        return model, remote_model(model, known)

    return resolve


def _model_settings(inference: InferenceSettings) -> ModelSettings:
    choice = inference.tool_choice
    return ModelSettings(
        temperature=inference.temperature,
        top_p=inference.top_p,
        max_tokens=inference.max_tokens,
        tool_choice=None if choice is ToolChoice.AUTO else choice.value,
        extra_args=None if inference.seed is None else {"seed": inference.seed},
    )


async def _write(trace: dict[str, Any], step: DurableStep, store: ObjectStore, started: datetime) -> Reference:
    trace |= {
        "ended": datetime.now(UTC).isoformat(),
        "tools": step.tools,
        "messages": step.messages,
        "calls": [asdict(call) for call in step.calls],
    }
    return await TraceStore(store).write(trace, agent=trace["agent"], step_id=trace["step_id"], when=started)


class _Session:
    """A conversation over steps; read and extended as units, so that a step run again adds nothing twice."""

    def __init__(self, request: Thinking, settings: Settings, ledger: Ledger) -> None:
        self._request, self._settings, self._ledger = request, settings, ledger
        self._session: SQLAlchemySession | None = None
        self._before = 0

    async def __aenter__(self) -> "_Session":
        if self._request.session_id is not None:
            if self._settings.database_url is None:
                raise UsageError("A session needs the service's database. Start the service: timestep up")
            self._database = Database(self._settings.database_url)
            self._session = SQLAlchemySession(
                self._request.session_id, engine=self._database.engine, create_tables=True
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._database.close()

    async def history(self) -> list[Any]:
        """Items of the session before this step."""
        session = self._session
        if session is None:
            return []

        async def call() -> Any:
            try:
                items = await session.get_items()
            except DBAPIError:
                # Two first sessions of a new database made the tables at the same time; now they are there.
                items = await session.get_items()
            return [dict(item) for item in items]

        recorded = await unit(self._ledger, self._begin("session/read"), call)
        self._before = len(recorded)
        return list(recorded)

    async def add(self, items: list[Any]) -> None:
        """Append this step's items, unless a killed run of this step had done so before it could record it."""
        session = self._session
        if session is None:
            return
        items = json.loads(json.dumps(items, default=str))

        async def call() -> Any:
            since = [dict(item) for item in (await session.get_items())[self._before :]]
            if not any(since[at : at + len(items)] == items for at in range(len(since))):
                await session.add_items(items)
            return len(items)

        await unit(self._ledger, self._begin("session/add"), call)

    def _begin(self, position: str) -> Begin:
        return Begin(position, "tool-call", position.replace("/", ": "), fingerprint(self._request.session_id))
