"""ControlFlow as a step: its agents, tasks and flows, whose model and tool calls are units as the Agents SDK's are.

All that knows ControlFlow (0.12.1, archived upstream) is here. It keeps its prompts, its turns and its tasks' states,
which a step that is run again goes through again; what it would do by itself is taken from it: Prefect tasks and
artifacts of its own, prints, names and ids by chance, its clients of models, work in the event loop.
"""

import asyncio
import contextvars
import copy
import importlib
import inspect
import json
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

from agents import (
    Agent,
    FunctionTool,
    MaxTurnsExceeded,
    Model,
    ModelBehaviorError,
    ModelResponse,
    ModelSettings,
    ModelTracing,
)
from agents.tool import set_function_tool_failure_error_function, with_function_tool_failure_error_handler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from openai.types.responses import ResponseFunctionToolCall
from pydantic import TypeAdapter

from timestep.agents.ask import ask_user
from timestep.agents.durable.declarations import idempotent, once
from timestep.agents.durable.function_calls import FunctionCall, decide
from timestep.agents.durable.model_calls import DurableModel
from timestep.agents.durable.runner import runner
from timestep.agents.durable.step import DurableStep, Limits, Run, Stop, scope
from timestep.agents.durable.threads import in_thread
from timestep.agents.langchain import LangChainModel, as_call, as_items, as_message, calls_of
from timestep.agents.record.units import fingerprint
from timestep.agents.tools import StepContext
from timestep.agents.types import ToolCall
from timestep.errors import TimestepError, UsageError


def _import_quietly() -> Any:
    """ControlFlow, without what its settings do while they are loaded.

    They read ``.env`` files, make a folder in the user's home, warn of a missing OpenAI key, and change Prefect's
    log level in the running context.
    """
    # What the user has set in the environment stands; only the defaults are ours.
    defaults = {"CONTROLFLOW_HOME_PATH": tempfile.gettempdir(), "CONTROLFLOW_TEST_MODE": "1"}
    quiet = {"CONTROLFLOW_LOG_LEVEL": "ERROR", "CONTROLFLOW_ENABLE_DEFAULT_PRINT_HANDLER": "0"}

    def imported() -> Any:
        module = importlib.import_module("controlflow")
        # Each later change of a setting would change Prefect's again.
        sys.modules["controlflow.settings"].prefect = MagicMock()  # type: ignore[attr-defined]
        module.settings.enable_default_print_handler = False
        return module

    with (
        patch.dict(os.environ, {**defaults, **os.environ, **quiet}),
        patch("prefect.logging.configuration.setup_logging"),
    ):
        return contextvars.copy_context().run(imported)


controlflow = _import_quietly()
from controlflow import decorators as _decorators  # noqa: E402
from controlflow.agents import agent as _agent  # noqa: E402
from controlflow.events import events as _events  # noqa: E402
from controlflow.events import history as _history  # noqa: E402
from controlflow.events import message_compiler as _compiler  # noqa: E402
from controlflow.llm.rules import LLMRules  # noqa: E402
from controlflow.orchestration import orchestrator as _orchestrator  # noqa: E402
from controlflow.orchestration import turn_strategies as _strategies  # noqa: E402
from controlflow.tasks import task as _task  # noqa: E402
from controlflow.tools import tools as _tools  # noqa: E402
from controlflow.tools.input import cli_input  # noqa: E402
from controlflow.utilities.context import ctx  # noqa: E402

KIND = "__timestep_kind__"  # of a decorated function: 'task' or 'flow'
CHARACTERS_PER_TOKEN = 4
ERROR = "Error calling function"  # so ControlFlow begins what it tells the model of a failed call


@dataclass
class Orchestration:
    """What came of a run: its result as JSON, and the calls that models made, with what they were told."""

    final_output: Any
    tool_calls: list[ToolCall]

    @property
    def text(self) -> str:
        """The result as one says it."""
        result = self.final_output
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


@dataclass
class _Run:
    """One step's run of ControlFlow, with all its flows, tasks and agents."""

    step: DurableStep
    context: StepContext
    settings: ModelSettings
    max_turns: int
    root: Any = None  # the task whose agents' positions name no task
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    ordinals: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    runs: dict[tuple[str, str], Run] = field(default_factory=dict)
    tool_calls: list[ToolCall] = field(default_factory=list)
    bridged: set[asyncio.Task[Any]] = field(default_factory=set)
    over: bool = False
    thread: int = field(default_factory=threading.get_ident)

    def __post_init__(self) -> None:
        self.random = random.Random(self.step.step_id)

    async def end(self) -> None:
        """What threads have asked for is cancelled, and they can ask for no more."""
        self.over = True
        for task in self.bridged:
            task.cancel()
        if self.bridged:
            await asyncio.wait(self.bridged, timeout=5)


_run: ContextVar[_Run | None] = ContextVar("controlflow_run", default=None)
# The events, with their threads, that the present run of tasks can see: one list for each run of tasks before it in its
# own strand of the program, and its own, the last. What other strands say at the same time would come as it happens.
_seen: ContextVar[tuple[list[tuple[str, Any]], ...]] = ContextVar("controlflow_events", default=([],))
_file_ordinals: Counter[str] = Counter()


def begin_file() -> None:
    """An agents file is about to be loaded: the ids of its tasks start anew."""
    _file_ordinals.clear()


def find(names: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(name, kind, object) of each agent, task and flow among a module's variables.

    An agent or a task goes by its name, and by its variable's where it has none; a flow by its function's name.
    """
    for variable, value in list(names.items()):
        if isinstance(value, controlflow.Agent):
            if "name" not in value.model_fields_set:
                value.name = variable
                value.id = value._generate_id()
            yield value.name, "agent", value
        elif isinstance(value, controlflow.Task | controlflow.Flow):
            yield value.name or variable, "task" if isinstance(value, controlflow.Task) else "flow", value
        elif inspect.isfunction(value) and hasattr(value, KIND):
            yield value.__name__, getattr(value, KIND), value


async def run_controlflow(
    step: DurableStep,
    what: Any,
    input: str | list[dict[str, Any]],
    *,
    context: StepContext,
    max_turns: int,
    settings: ModelSettings,
) -> Orchestration:
    """Run a ControlFlow agent, task or flow to its result; each model and tool call is a unit of ``step``.

    Args:
        step: Where the calls are recorded, and how the agents' models are found.
        what: An agent works on ``input`` as its task's objective. A task gets it as its context's ``input``. A
            flow's function gets it as its first argument, or as its arguments where it is a JSON object of them.
        input: Text, or OpenAI-style items, of which the earlier ones are the conversation before.
        context: Handed to tools of the Agents SDK.
        max_turns: Most model calls.
        settings: Of every model call.

    Raises:
        MaxTurnsExceeded: more model calls were needed.
        TimestepError: the task failed, in the model's words.
    """
    run = _Run(step, context, settings, max_turns)
    runner()  # of agents that serve as tools
    token = _run.set(run)
    _seen.set(([],))
    try:
        return Orchestration(_json(await _result(run, what, input)), run.tool_calls)
    except Stop as stop:
        raise stop.error from stop.error.__cause__
    finally:
        _run.reset(token)
        await run.end()


async def _result(run: _Run, what: Any, input: str | list[dict[str, Any]]) -> Any:
    items: list[dict[str, Any]] = [{"role": "user", "content": input}] if isinstance(input, str) or not input else input
    text = _text(items[-1]) if len(items) == 1 else "\n\n".join(f"{item['role']}: {_text(item)}" for item in items)
    if inspect.isfunction(what):
        for value in inspect.unwrap(what).__globals__.values():
            _reset(value)
        result = await _called(what, text)
        if not isinstance(result, controlflow.Task):
            return result
        if getattr(what, KIND) == "task":
            run.root = result
        return await _completed(run, result)
    flow = what if isinstance(what, controlflow.Flow) else controlflow.Flow(parent=None)
    with flow:
        if isinstance(what, controlflow.Agent):
            flow.add_events([_said(what, item) for item in items[:-1]])
            run.root = controlflow.Task(objective=_text(items[-1]), agents=[what])
        elif isinstance(what, controlflow.Flow):
            run.root = controlflow.Task(objective=text)
        else:
            run.root = what
            _reset(what)
            what.context = {name: value for name, value in what.context.items() if name != "input"}
            what.context |= {"input": text} if text.strip() else {}
        return await _completed(run, run.root)


async def _completed(run: _Run, task: Any) -> Any:
    """The task's result, once agents have worked on it."""
    turns = run.max_turns + 1  # the model call after the last is refused, with its reason
    if task.is_incomplete():
        await controlflow.run_tasks_async([task], raise_on_failure=False, max_llm_calls=turns, max_agent_turns=turns)
    if task.is_failed():
        name = task.name or task.objective[:50]
        raise TimestepError(f"Task '{name}' failed: {' '.join(str(task.result).split())}")
    return task.result


async def _called(function: Callable[..., Any], text: str) -> Any:
    """The result of a flow's or task's function; a synchronous one has a thread, where its calls wait for the loop."""
    arguments = _arguments(function, text)
    if getattr(function, KIND) == "task":
        return await in_thread(lambda: function.as_task(**arguments))  # type: ignore[attr-defined]
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    return await in_thread(lambda: function(**arguments))


def _arguments(function: Callable[..., Any], text: str) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    with suppress(ValueError):
        given = json.loads(text)
        if isinstance(given, dict) and given and set(given) <= set(parameters):
            return given
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if len(needed) > 1:
        raise UsageError(
            f"'{function.__name__}' takes {', '.join(map(repr, needed))}. Give the input as a JSON object of them."
        )
    return {next(iter(parameters)): text} if parameters and (needed or text.strip()) else {}


# -- what ControlFlow calls instead of its own


async def _turn(
    self: Any, messages: list[BaseMessage], tools: list[Any], model_kwargs: dict[str, Any] | None = None, **_: Any
) -> AsyncIterator[Any]:
    """Of an agent: one model call, and the tool calls that it asks for, in their order."""
    run = _present()
    tools = _tools.as_tools(self.get_tools() + tools)
    functions = {tool.name: _function_tool(tool) for tool in tools}
    within, response = await _ask(run, self, messages, functions, model_kwargs or {})
    _check_ids(self.name, response)
    message = as_message(response)
    for event in _events.AgentMessage(agent=self, message=message).all_related_events(tools=tools):
        yield event
    by_name, own = {tool.name: tool for tool in tools}, _own_tools(self)
    calls = {
        asked.call_id: FunctionCall(asked, self.name, within, functions[asked.name], run.context)
        for asked in calls_of(response)
        if asked.name in by_name and asked.name not in own
    }
    await decide(list(calls.values()))
    for asked in calls_of(response):
        tool = by_name.get(asked.name)
        text = await _output(calls[asked.call_id]) if asked.call_id in calls else _own_output(within, tool, asked)
        run.tool_calls.append(ToolCall(name=asked.name, arguments=asked.arguments, output=text))
        failed = tool is None or text.startswith(ERROR)
        result = _tools.ToolResult(tool_call=as_call(asked), tool=tool, result=text, str_result=text, is_error=failed)
        yield _events.ToolResult(agent=self, tool_result=result)


def _run_sync(self: Any, *, stream: Any = False, **arguments: Any) -> Any:
    """Of an orchestrator: what a thread asked for, done by the step's event loop."""
    run = _present()
    if stream:
        raise UsageError("Within a step ControlFlow can't stream: GET /v1/steps/{id}/events does.")
    if threading.get_ident() == run.thread:
        raise UsageError("A synchronous ControlFlow call would stop the step's event loop. Await its '_async' variant.")

    async def bridged() -> Any:
        task = asyncio.current_task()
        assert task is not None
        run.bridged.add(task)
        try:
            return await self.run_async(**arguments), _seen.get()
        finally:
            run.bridged.discard(task)

    result, seen = asyncio.run_coroutine_threadsafe(bridged(), run.loop).result()
    _seen.set(seen)
    return result


async def _run_async(self: Any, **arguments: Any) -> Any:
    """Of an orchestrator: its events are a list of their own, which those after it see."""
    _present()
    seen = (*_seen.get(), [])
    _seen.set(seen)
    try:
        return await _original_run_async(self, **arguments)
    finally:
        _seen.set(seen)


def _present() -> _Run:
    run = _run.get()
    if run is None:
        raise UsageError("ControlFlow runs within a step. Start one: timestep step 'what to do' --agent NAME")
    if run.over:
        raise asyncio.CancelledError
    return run


async def _ask(
    run: _Run, agent: Any, messages: list[BaseMessage], tools: dict[str, FunctionTool], more: dict[str, Any]
) -> tuple[Run, ModelResponse]:
    """The model's response to an agent's turn, and the run that knows the positions of its calls."""
    here = scope.get()
    path, task = here.path if here else "", ctx.get("orchestrator").tasks[0]
    if run.turns[path] >= run.max_turns:
        raise MaxTurnsExceeded(f"Max turns ({run.max_turns}) exceeded")
    run.turns[path] += 1
    # By the task, not by arrival: a flow may run several at the same time.
    label = "" if task is run.root else f"{task.name or 'task'}-{task.id}."
    within = run.runs.setdefault((path, label), Run(run.step, path))
    chat = agent.model if isinstance(agent.model, BaseChatModel) else None
    name, model = run.step.resolve(Agent(name=agent.name, model=LangChainModel(chat) if chat else agent.model))
    if isinstance(model, LangChainModel):
        name, model.messages = type(chat).__name__, messages
    system = messages[0].text if messages and isinstance(messages[0], SystemMessage) else None
    with within.entered():
        response = await DurableModel(name, model, label + agent.name, Limits()).get_response(
            system_instructions=system,
            input=as_items(messages[system is not None :]),
            model_settings=_settings(more).resolve(run.settings),
            tools=list(tools.values()),
            output_schema=None,
            handoffs=[],
            tracing=ModelTracing.DISABLED,
            previous_response_id=None,
            conversation_id=None,
            prompt=None,
        )
    return within, response


def _check_ids(agent: str, response: ModelResponse) -> None:
    """Calls are known by their ids: of two with one, it could not be told which a result answers."""
    ids = Counter(asked.call_id for asked in calls_of(response))
    if twice := [call_id for call_id, count in ids.items() if count > 1]:
        raise ModelBehaviorError(
            f"The model of agent '{agent}' gave the id '{twice[0]}' to {ids[twice[0]]} calls of one response."
        )


def _settings(more: dict[str, Any]) -> ModelSettings:
    """Model settings of what a task gives as ``model_kwargs``."""
    known = {name: more[name] for name in ("temperature", "top_p", "max_tokens", "tool_choice") if name in more}
    rest = {name: value for name, value in more.items() if name not in known}
    return ModelSettings(**known, extra_args=rest or None)


def _own_tools(agent: Any) -> set[str]:
    """Names of the tools by which ControlFlow itself goes on: they change its state, and run again on a replay."""
    orchestrator = ctx.get("orchestrator")
    available = orchestrator.get_available_agents()
    turns = orchestrator.turn_strategy.get_tools(agent, available) if len(available) > 1 else []
    completions = [tool for task in orchestrator.get_tasks("assigned") for tool in task.get_completion_tools()]
    return {tool.name for tool in [*turns, *completions]}


async def _output(call: FunctionCall) -> str:
    """What the model is told of its call."""
    seen = _seen.get()
    try:
        return str(_tools.output_to_string(await call.output()))
    finally:
        _seen.set(seen)  # what runs within the tool have said, a replay would not know


def _own_output(within: Run, tool: Any, asked: ResponseFunctionToolCall) -> str:
    """Of a call by which ControlFlow goes on, which is made at once; or of one of no tool."""
    if tool is None:
        text = f'There is no tool called "{asked.name}".'
    else:
        try:
            text = str(_tools.output_to_string(tool.fn(**json.loads(asked.arguments or "{}"))))
        except Exception as error:
            text = f'{ERROR} "{asked.name}": {error}'
    if not within.path:
        within.step.messages.append({"role": "tool", "tool_call_id": asked.call_id, "content": text})
    return text


def _function_tool(tool: Any) -> FunctionTool:
    """A tool of ControlFlow as one of the Agents SDK, with what its ``metadata`` declares."""
    if tool is cli_input:
        question = copy.copy(ask_user)
        question.name = tool.name  # the one that its instructions speak of
        return question
    given = getattr(tool.fn, "function_tool", None)
    if isinstance(given, FunctionTool):
        return given

    async def invoke(_: Any, arguments: str) -> str:
        values = json.loads(arguments or "{}")
        call = partial(tool.fn, **values)
        result = await call() if inspect.iscoroutinefunction(tool.fn) else await in_thread(call)
        return str(_tools.output_to_string(await result if inspect.isawaitable(result) else result))

    function = FunctionTool(
        name=tool.name,
        description=tool.description,
        params_json_schema=tool.parameters,
        on_invoke_tool=with_function_tool_failure_error_handler(invoke, lambda *_: None),
        strict_json_schema=False,
        needs_approval=_policy(tool.metadata.get("needs_approval")),
    )
    set_function_tool_failure_error_function(function, lambda _, error: f'{ERROR} "{tool.name}": {error}')
    if tool.metadata.get("idempotent"):
        function = idempotent(function)
    return once(function) if tool.metadata.get("once") else function


def _policy(needed: Any) -> Any:
    """Whether calls need an approval: for all of them, or a function that says so of each as in the Agents SDK."""
    if not callable(needed):
        return bool(needed)

    async def needs_approval(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
        answer = needed(context, arguments, call_id)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    return needs_approval


def _said(agent: Any, item: dict[str, Any]) -> Any:
    """An item of the conversation before, as an event of ControlFlow's."""
    if item.get("role") == "assistant":
        return _events.AgentMessage(agent=agent, message=AIMessage(content=_text(item)))
    return _events.UserMessage(content=_text(item))


def _text(item: dict[str, Any]) -> str:
    content = item.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else json.dumps(item, ensure_ascii=False, default=str)


def _json(value: Any) -> Any:
    """A result as JSON; what has no JSON, as text."""
    try:
        return TypeAdapter(type(value)).dump_python(value, mode="json")
    except Exception:
        return str(value)


# -- what ControlFlow would do by chance, by the clock, or for itself


def _as_tools(tools: list[Any]) -> list[Any]:
    """ControlFlow's own conversion, which takes tools of the Agents SDK as well."""
    return list(_original_as_tools([_from_sdk(tool) if isinstance(tool, FunctionTool) else tool for tool in tools]))


def _from_sdk(tool: FunctionTool) -> Any:
    if tool._is_agent_tool:
        raise UsageError(
            f"'{tool.name}' is an Agents SDK agent as a tool. In ControlFlow, make it an agent of the task."
        )

    def call(**_: Any) -> str:
        raise AssertionError("called by way of the tool of the Agents SDK")

    call.function_tool = tool  # type: ignore[attr-defined]
    return _tools.Tool(name=tool.name, description=tool.description, parameters=tool.params_json_schema, fn=call)


def _agent_init(self: Any, instructions: str | None = None, **values: Any) -> None:
    """A model of the Agents SDK, which is none of LangChain's, is taken past the field's type."""
    model = values.get("model")
    if isinstance(model, Model):
        del values["model"]
    _original_agent_init(self, instructions, **values)
    if isinstance(model, Model):
        vars(self)["model"] = model


def _task_init(self: Any, objective: str | None = None, user_access: bool | None = None, **values: Any) -> None:
    """A task's id follows from what it is, and from how many like it there were: the same in every process."""
    if values.get("id") is None:
        run = _run.get()
        about = {name: values.get(name) for name in ("name", "objective", "instructions", "prompt", "context")}
        content = fingerprint({**about, "objective": objective or values.get("objective"), "run": run is not None})
        values["id"] = fingerprint([content, _ordinal(content)])[:8]
    _original_task_init(self, objective, user_access, **values)


def _ordinal(content: str) -> int:
    run = _run.get()
    ordinals = _file_ordinals if run is None else run.ordinals
    ordinals[content] += 1
    return ordinals[content]


def _reset(task: Any) -> None:
    """A task of the file, with all that it is tied to, as not yet worked on."""
    found, left = set(), [task] if isinstance(task, controlflow.Task) else []
    while left:
        task = left.pop()
        if task not in found:
            found.add(task)
            left += [*task._subtasks, *task._downstreams, *task.depends_on, *([task.parent] if task.parent else [])]
            task.status, task.result, task._llm_calls = _task.TaskStatus.PENDING, None, 0


def _agent_name(names: list[str]) -> str:
    return names[(_ordinal("agent") - 1) % len(names)]


def _some_agent(agents: list[Any]) -> Any:
    return _present().random.choice(agents)


def _add_events(self: Any, events: list[Any]) -> None:
    _seen.get()[-1].extend((self.thread_id, event) for event in events if event.persist)


def _get_events(
    self: Any,
    before_id: str | None = None,
    after_id: str | None = None,
    limit: int | None = None,
    types: list[str] | None = None,
) -> list[Any]:
    """A flow's events, and those of the flows above it, in their order: the clock is not asked."""
    threads, flow = {self.thread_id}, self
    while flow.parent and flow.load_parent_events:
        flow = flow.parent
        threads.add(flow.thread_id)
    events = [event for said in _seen.get() for thread, event in said if thread in threads]
    return list(_history.filter_events(events, types, before_id, after_id, limit))


@contextmanager
def _flow_context(self: Any, **_: Any) -> Iterator[Any]:
    with ctx(flow=self, tasks=None):
        yield self


def _get_memories(self: Any) -> list[Any]:
    """Memories of the orchestrator's agent and its tasks, in their order: it makes a set of them."""
    memories = [*self.agent.memories, *(memory for task in self.get_tasks("assigned") for memory in task.memories)]
    return list({id(memory): memory for memory in memories}.values())


def _decorator(kind: str) -> Callable[..., Any]:
    """Instead of Prefect's: a plain function, marked."""

    def configured(**options: Any) -> Callable[[Any], Any]:
        if given := [name for name, value in options.items() if value is not None]:
            raise UsageError(f"{', '.join(given)} of a ControlFlow {kind} are Prefect's, and a step has its own.")

        def mark(function: Any) -> Any:
            setattr(function, KIND, kind)
            return function

        return mark

    return configured


def _tame() -> None:
    for module in [module for name, module in sys.modules.items() if name.startswith("controlflow.")]:
        if getattr(module, "as_tools", None) is _original_as_tools:
            module.as_tools = _as_tools  # type: ignore[attr-defined]
    _decorators.prefect_flow, _decorators.prefect_task = _decorator("flow"), _decorator("task")
    _agent.get_model_from_string = str  # a name is for the step's providers
    _agent.random, _strategies.random = SimpleNamespace(choice=_agent_name), SimpleNamespace(choice=_some_agent)
    _compiler.count_tokens = lambda message: len(message.model_dump_json()) // CHARACTERS_PER_TOKEN
    agent, task, flow, orchestrator = controlflow.Agent, controlflow.Task, controlflow.Flow, _orchestrator.Orchestrator
    agent.__init__, agent._run_model_async = _agent_init, _turn
    agent.get_llm_rules = lambda self: self.llm_rules or LLMRules(model=None)
    task.__init__, task.__hash__ = _task_init, lambda self: int(fingerprint(self.id)[:15], 16)
    flow.add_events, flow.get_events, flow.create_context = _add_events, _get_events, _flow_context
    orchestrator.get_memories = _get_memories
    orchestrator.run, orchestrator.run_async = _run_sync, _run_async
    orchestrator._run_async = orchestrator._run_async.fn


_original_as_tools = _tools.as_tools
_original_run_async = _orchestrator.Orchestrator.run_async
_original_agent_init, _original_task_init = controlflow.Agent.__init__, controlflow.Task.__init__
_tame()
