"""An agent graph cloned for one run, circles included: models, tools, guardrails and instructions are recorded."""

import copy
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from agents import Agent, Handoff, RunContextWrapper
from agents.tool import Tool

from timestep.agents.guardrails import scoped
from timestep.agents.ledger import Begin
from timestep.agents.local_tools import local_tool
from timestep.agents.model_calls import DurableModel
from timestep.agents.step import Limits, Run, Scope, Stop, part
from timestep.agents.tool_calls import durable_tool
from timestep.agents.units import fingerprint


class Graph:
    """The clones of one run; the original agents stay as they are."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._clones: dict[int, Agent[Any]] = {}
        self._originals: list[Agent[Any]] = []  # kept, so that no id is given to another agent

    def holds(self, agent: Agent[Any] | None) -> bool:
        """Whether the agent is one of these clones."""
        return any(clone is agent for clone in self._clones.values())

    def clone(self, agent: Agent[Any]) -> Agent[Any]:
        """The agent's clone; one that is a clone of this graph already is itself."""
        if id(agent) in self._clones:
            return self._clones[id(agent)]
        if self.holds(agent):
            return agent
        run = self._run
        name, model = run.step.resolve(agent if run.model is None else replace(agent, model=run.model))
        limits, settings = Limits.taken_from(agent.model_settings)
        names: list[str] = []  # of its guardrails

        def here(*_: Any) -> str:
            return f"{run.path}{part(agent.name)}"

        clone = replace(
            agent,
            model=DurableModel(name, model, agent.name, limits),
            # Given with the model, or the SDK would swap in that model's own defaults.
            model_settings=settings,
            tools=[local_tool(durable_tool(tool, run), agent, run) for tool in agent.tools],
            handoffs=[],
            input_guardrails=scoped(agent.input_guardrails, here, names),
            output_guardrails=scoped(agent.output_guardrails, here, names),
        )
        self._clones[id(agent)] = clone
        self._originals.append(agent)
        clone.handoffs = [self._handoff(target, agent) for target in agent.handoffs]
        if callable(agent.instructions):
            clone.instructions = self._remembered("instructions", agent, agent.instructions)
        if callable(agent.prompt):
            clone.prompt = self._remembered_prompt(agent)
        if agent.mcp_servers:
            self._wrap_mcp(clone)
        return clone

    def _wrap_mcp(self, clone: Agent[Any]) -> None:
        async def get_mcp_tools(run_context: RunContextWrapper[Any]) -> list[Tool]:
            tools = await type(clone).get_mcp_tools(clone, run_context)
            return [durable_tool(tool, self._run) for tool in tools]

        clone.get_mcp_tools = get_mcp_tools  # type: ignore[method-assign]

    def _handoff(self, target: Agent[Any] | Handoff[Any, Any], source: Agent[Any]) -> Agent[Any] | Handoff[Any, Any]:
        if isinstance(target, Agent):
            return self.clone(target)
        invoke, known = target.on_invoke_handoff, target._agent_ref

        async def on_invoke_handoff(context: RunContextWrapper[Any], arguments: str) -> Agent[Any]:
            there = known() if known is not None else None
            if not isinstance(there, Agent):
                return self.clone(await invoke(context, arguments))  # only its own function knows where to

            async def hand_over() -> str:
                return str((await invoke(context, arguments)).name)

            # What the author does at a handoff is done once, like a tool's call.
            await self._recorded("handoff", source, self._run.turn - 1, hand_over, target.tool_name, arguments)
            return self.clone(there)

        copied = copy.copy(target)
        copied.on_invoke_handoff = on_invoke_handoff
        return copied

    def _remembered(self, what: str, agent: Agent[Any], function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """A function of the author's whose result is recorded: a clock in it must not change the request on resume."""

        async def remembered(context: Any, running: Any) -> Any:
            async def call() -> Any:
                result = function(context, running)
                return await result if inspect.isawaitable(result) else result

            return await self._recorded(what, agent, self._run.turn, call)

        return remembered

    def _remembered_prompt(self, agent: Agent[Any]) -> Any:
        prompt: Any = agent.prompt
        remembered = self._remembered("prompt", agent, lambda data, _: prompt(data))

        async def dynamic(data: Any) -> Any:
            return await remembered(data, None)

        return dynamic

    async def _recorded(
        self, what: str, agent: Agent[Any], turn: int, call: Callable[[], Awaitable[Any]], *asked: str
    ) -> Any:
        """A result in the ledger alone: it shows as no task."""
        step, position = self._run.step, f"{self._run.at(agent.name, turn)}/{what}"
        try:
            recorded = await step.ledger.begin(Begin(position, what, agent.name, fingerprint([what, *asked])))
        except Exception as error:
            raise Stop(error) from error
        if recorded is not None:
            return recorded.result["value"]
        with Scope(step, f"{position}/").entered():
            value = await call()
        try:
            await step.ledger.finish(position, {"value": value})
        except Exception as error:
            raise Stop(error) from error
        return value
