"""An agent graph cloned for one run, circles included: models, tools, guardrails and instructions are recorded."""

import asyncio
import copy
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from agents import Agent, Handoff, RunContextWrapper
from agents.tool import Tool

from timestep.agents.durable.guardrails import scoped
from timestep.agents.durable.local_tools import local_tool
from timestep.agents.durable.model_calls import DurableModel
from timestep.agents.durable.step import Limits, Run, Scope, Stop, part
from timestep.agents.durable.tool_calls import durable_tool, idempotency_key
from timestep.agents.record.lease import unblocked
from timestep.agents.record.ledger import Begin
from timestep.agents.record.units import fingerprint
from timestep.agents.tools import keyed
from timestep.errors import TimestepError


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
            made: list[Agent[Any]] = []

            async def hand_over() -> str:
                made.append(await invoke(context, arguments))
                return str(made[0].name)

            # What the author does at a handoff is done once, like a tool's call.
            turn = self._run.turn - 1
            name = await self._recorded("handoff", source, turn, hand_over, target.tool_name, arguments)
            there = known() if known is not None else next(iter(made), None) or self._known(name)
            if not isinstance(there, Agent):
                # On a replay only its own function may know where to. It has the same key as the first time.
                with keyed(self._key(source, turn, "handoff")):
                    there = await invoke(context, arguments)
            return self.clone(there)

        copied = copy.copy(target)
        copied.on_invoke_handoff = on_invoke_handoff
        return copied

    def _known(self, name: str) -> Agent[Any] | None:
        """The agent of that name among those of the run, and those that they hand off to."""
        agents = [
            *self._originals,
            *(to for agent in self._originals for to in agent.handoffs if isinstance(to, Agent)),
        ]
        return next((agent for agent in agents if agent.name == name), None)

    def _position(self, agent: Agent[Any], turn: int, what: str) -> str:
        return f"{self._run.at(agent.name, turn)}/{what}"

    def _key(self, agent: Agent[Any], turn: int, what: str) -> str:
        return idempotency_key(self._run.step.step_id, self._position(agent, turn, what))

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
        step, position = self._run.step, self._position(agent, turn, what)
        try:
            recorded = await step.ledger.begin(Begin(position, what, agent.name, fingerprint([what, *asked])))
        except Exception as error:
            raise Stop(error) from error
        if recorded is not None:
            return recorded.result["value"]
        seconds = step.policy.tool_timeout
        blocking = unblocked(step.step_id, seconds, f"the {what} of agent '{agent.name}'")
        with Scope(step, f"{position}/").entered(), keyed(self._key(agent, turn, what)), blocking:
            try:
                async with asyncio.timeout(seconds) as limit:
                    value = await call()
            except TimeoutError as error:
                if not limit.expired():
                    raise  # the author's own
                why = f"The {what} of agent '{agent.name}' did not end within {seconds:g} s. Raise tool_timeout."
                raise Stop(TimestepError(why)) from error
        try:
            await step.ledger.finish(position, {"value": value})
        except Exception as error:
            raise Stop(error) from error
        return value
