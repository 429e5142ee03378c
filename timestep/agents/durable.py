"""The durable runtime: an Agents SDK run whose every model and tool call is one persisted unit.

It works from the outside. The agent graph is cloned with its models and tools wrapped, and an
``AgentRunner`` does the same for the runs that agents-as-tools start. A unit's position is the path of
runs above it, the count of model calls in its run, and for a tool the index of its call within the
model's response: never the order of arrival, so that parallel calls keep their positions.
"""

import copy
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import openai
from agents import Agent, FunctionTool, Handoff, Model, ModelResponse, ModelSettings, RunConfig, RunResult
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.models.chatcmpl_converter import Converter
from agents.run import AgentRunner, set_default_agent_runner
from agents.tool import Tool
from openai.types.responses import Response, ResponseCompletedEvent, ResponseFunctionToolCall
from pydantic import BaseModel, TypeAdapter

from timestep.agents.ledger import Begin, Ledger, MemoryLedger
from timestep.agents.units import fingerprint, unit
from timestep.errors import TimestepError
from timestep.models.providers import answered

_response = TypeAdapter(ModelResponse)

ResolveModel = Callable[[Agent[Any]], tuple[str, Model]]


@dataclass
class CallRecord:
    """What the trace says of one unit; seconds are of this process, 0.0 where it was answered from the record."""

    position: str
    kind: str
    name: str
    seconds: float = 0.0
    usage: dict[str, int] | None = None
    forced: bool = False


@dataclass
class DurableStep:
    """One step in progress: its id, how its agents' models are found, and what was called so far."""

    step_id: str
    resolve: ResolveModel
    ledger: Ledger = field(default_factory=MemoryLedger)
    calls: list[CallRecord] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Run:
    """One SDK run within a step: the root, or one started by an agent that serves as a tool."""

    step: DurableStep
    path: str = ""
    turn: int = 0
    positions: dict[str, str] = field(default_factory=dict)


_run: ContextVar[_Run | None] = ContextVar("durable_run", default=None)
_tool_position: ContextVar[str] = ContextVar("tool_position", default="")


class DurableRunner(AgentRunner):
    """The SDK's runner, which within a durable step runs the wrapped clone of the agent it is given."""

    async def run(self, starting_agent: Agent[Any], input: Any, **kwargs: Any) -> RunResult:
        outer = _run.get()
        if outer is None:
            return await super().run(starting_agent, input, **kwargs)
        token = _run.set(_Run(outer.step, path=_tool_position.get()))
        try:
            return await super().run(_Graph(outer.step).clone(starting_agent), input, **kwargs)
        finally:
            _run.reset(token)


async def run_durably(
    step: DurableStep,
    agent: Agent[Any],
    input: str | list[TResponseInputItem],
    *,
    context: Any,
    max_turns: int,
    settings: ModelSettings,
) -> RunResult:
    """Run an agent to its final output; each call is a unit of ``step``."""
    runner = DurableRunner()
    # Agents as tools start their runs through the SDK's default runner.
    set_default_agent_runner(runner)
    token = _run.set(_Run(step))
    try:
        return await runner.run(
            agent,
            input,
            context=context,
            max_turns=max_turns,
            run_config=RunConfig(model_settings=settings, tracing_disabled=True),
        )
    finally:
        _run.reset(token)
        set_default_agent_runner(None)


class _Graph:
    """Clones an agent graph, circles included; the original agents stay as they are."""

    def __init__(self, step: DurableStep) -> None:
        self._step = step
        self._clones: dict[int, Agent[Any]] = {}

    def clone(self, agent: Agent[Any]) -> Agent[Any]:
        if id(agent) in self._clones:
            return self._clones[id(agent)]
        name, model = self._step.resolve(agent)
        clone = dataclasses.replace(
            agent,
            model=DurableModel(name, model, agent.name),
            # Given with the model, or the SDK would swap in that model's own defaults.
            model_settings=agent.model_settings,
            tools=[_durable_tool(tool) for tool in agent.tools],
            handoffs=[],
        )
        self._clones[id(agent)] = clone
        clone.handoffs = [self._handoff(target) for target in agent.handoffs]
        if agent.mcp_servers:

            async def get_mcp_tools(run_context: Any) -> list[Tool]:
                return [_durable_tool(tool) for tool in await agent.get_mcp_tools(run_context)]

            clone.get_mcp_tools = get_mcp_tools  # type: ignore[method-assign]
        return clone

    def _handoff(self, target: Agent[Any] | Handoff[Any, Any]) -> Agent[Any] | Handoff[Any, Any]:
        if isinstance(target, Agent):
            return self.clone(target)
        invoke = target.on_invoke_handoff

        async def on_invoke_handoff(context: Any, arguments: str) -> Agent[Any]:
            return self.clone(await invoke(context, arguments))

        return dataclasses.replace(target, on_invoke_handoff=on_invoke_handoff)


class DurableModel(Model):
    """A model whose every response is a persisted unit."""

    def __init__(self, name: str, model: Model, agent: str) -> None:
        self.name, self._model, self._agent = name, model, agent

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: Any,
        handoffs: list[Handoff[Any, Any]],
        tracing: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        run = _run.get()
        assert run is not None, "a durable model is only called within run_durably"
        position = f"{run.path}{self._agent}/{run.turn}"
        run.turn += 1
        offered = [_tool_json(tool) for tool in tools] + [Converter.convert_handoff_tool(h) for h in handoffs]
        request = {
            "model": self.name,
            "instructions": system_instructions,
            "input": input,
            "settings": model_settings.to_json_dict(),
            "tools": offered,
            "schema": output_schema.json_schema() if output_schema and not output_schema.is_plain_text() else None,
        }
        record = CallRecord(position, "model", self.name, forced=_is_forced(model_settings.tool_choice))

        async def call() -> Any:
            started = time.perf_counter()
            names: list[str] = []
            answered.set(names)
            response = await _translate_errors(
                self._model.get_response(
                    system_instructions,
                    input,
                    model_settings,
                    tools,
                    output_schema,
                    handoffs,
                    tracing,
                    **kwargs,
                )
            )
            record.seconds = time.perf_counter() - started
            served = names[-1] if names else self.name
            return {"model": served, "response": _response.dump_python(response, mode="json")}

        if not run.path:
            # Before the call, so that the trace of a step that fails here says what was asked.
            run.step.tools = [dict(tool) for tool in offered]
            run.step.messages = _messages(system_instructions, input)
        name = f"{self._agent} {run.turn}: {self.name}"
        recorded = await unit(run.step.ledger, Begin(position, "model-call", name, fingerprint(request)), call)
        response, record.name = _response.validate_python(recorded["response"]), recorded["model"]
        record.usage = {"input_tokens": response.usage.input_tokens, "output_tokens": response.usage.output_tokens}
        run.step.calls.append(record)
        calls = [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]
        run.positions.update({item.call_id: f"{position}/{index}" for index, item in enumerate(calls)})
        if not run.path:
            run.step.messages = _messages(system_instructions, input, response)
        return response

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        # One completed event: what a resumed run could replay. Agents as tools may ask for a stream.
        response = await self.get_response(*args, **kwargs)
        whole = Response(
            id=response.response_id or "resp",
            created_at=time.time(),
            model=self.name,
            object="response",
            output=response.output,
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(type="response.completed", response=whole, sequence_number=0)


def _durable_tool(tool: Tool) -> Tool:
    """A copy of a function tool whose every call is a persisted unit; other tools run at the provider."""
    if not isinstance(tool, FunctionTool):
        return tool
    invoke = tool.on_invoke_tool

    async def on_invoke_tool(context: Any, arguments: str) -> Any:
        run = _run.get()
        assert run is not None, "a durable tool is only called within run_durably"
        position = run.positions[context.tool_call_id]
        record = CallRecord(position, "tool", tool.name)

        async def call() -> Any:
            started = time.perf_counter()
            token = _tool_position.set(f"{position}/")
            try:
                return _json_output(await invoke(context, arguments))
            finally:
                _tool_position.reset(token)
                record.seconds = time.perf_counter() - started

        request = {"tool": tool.name, "arguments": arguments}
        try:
            output = await unit(run.step.ledger, Begin(position, "tool-call", tool.name, fingerprint(request)), call)
        finally:
            run.step.calls.append(record)
        if not run.path:
            content = output if isinstance(output, str) else json.dumps(output)
            run.step.messages.append({"role": "tool", "tool_call_id": context.tool_call_id, "content": content})
        return output

    durable = copy.copy(tool)
    durable.on_invoke_tool = on_invoke_tool
    return durable


def _json_output(output: Any) -> Any:
    """A tool's output as JSON that the SDK reads back as the same output."""
    if isinstance(output, BaseModel):
        return output.model_dump(mode="json", exclude_none=True)
    if isinstance(output, list) and output and all(isinstance(part, BaseModel) for part in output):
        return [_json_output(part) for part in output]
    return output if isinstance(output, str | dict) else str(output)


def _tool_json(tool: Tool) -> dict[str, Any]:
    if isinstance(tool, FunctionTool):
        return dict(Converter.tool_to_openai(tool))
    return {"type": tool.name}


def _is_forced(tool_choice: Any) -> bool:
    return tool_choice is not None and tool_choice not in ("auto", "none")


def _messages(system: str | None, input: Any, response: ModelResponse | None = None) -> list[dict[str, Any]]:
    """The conversation so far as chat messages, the way a chat-completions server is sent it."""
    items: list[Any] = [{"role": "user", "content": input}] if isinstance(input, str) else list(input)
    messages: list[Any] = Converter.items_to_messages([*items, *(response.to_input_items() if response else [])])
    return [{"role": "system", "content": system}] * bool(system) + [dict(message) for message in messages]


async def _translate_errors(response: Any) -> ModelResponse:
    """A server's refusal in its own words, instead of the client's dump of the response."""
    try:
        result: ModelResponse = await response
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        raise TimestepError(str(body.get("message") or error.message)) from error
    except openai.APIConnectionError as error:
        raise TimestepError(f"No model server answers at '{error.request.url}': {error.__cause__ or error}") from error
    return result
