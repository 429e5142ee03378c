"""The function calls of a model's response, made by an engine other than the SDK's runner: as recorded units, and
where a tool needs it after people have been asked. Knows steps and tools, no engine.
"""

from dataclasses import dataclass
from typing import Any

from agents import Agent, FunctionTool, Usage
from agents.tool_context import ToolContext
from openai.types.responses import ResponseFunctionToolCall

from timestep.agents.ask import is_question
from timestep.agents.durable.step import Run, Stop
from timestep.agents.durable.tool_calls import durable_tool
from timestep.agents.langchain import as_call
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict


@dataclass
class FunctionCall:
    """One call, of a tool whose calls are units; ``context`` is what tools see as ``context.context``."""

    asked: ResponseFunctionToolCall
    agent: str
    within: Run
    tool: FunctionTool
    context: Any
    decision: Decision | None = None

    def __post_init__(self) -> None:
        self.position = self.within.positions[self.asked.call_id]
        self._durable: Any = durable_tool(self.tool, self.within)

    async def waits(self) -> bool:
        """Whether a person has to be asked before."""
        needs = self._durable.needs_approval
        if callable(needs):
            return bool(await needs(self._context(), as_call(self.asked)["args"], self.asked.call_id))
        return bool(needs)

    def pending(self) -> PendingCall:
        """The call as people see it."""
        return PendingCall(
            position=self.position,
            kind=Kind.QUESTION if is_question(self.tool) else Kind.APPROVAL,
            call_id=self.asked.call_id,
            agent=self.agent,
            tool=self.tool.name,
            arguments=self.asked.arguments,
        )

    async def output(self) -> Any:
        """What the tool returned, the record says, or a person answered; where it was rejected, that and why."""
        if self.decision is not None and self.decision.verdict is Verdict.REJECT:
            text = f"A person rejected this call{f': {self.decision.text}' if self.decision.text else '.'}"
            if not self.within.path:
                self.within.step.messages.append({"role": "tool", "tool_call_id": self.asked.call_id, "content": text})
            return text
        with self.within.entered():
            return await self._durable.on_invoke_tool(self._context(), self.asked.arguments)

    def _context(self) -> ToolContext[Any]:
        asked, agent = self.asked, Agent[Any](name=self.agent)
        return ToolContext(
            self.context, Usage(), asked.name, asked.call_id, asked.arguments, tool_call=asked, agent=agent
        )


async def decide(calls: list[FunctionCall]) -> None:
    """Ask people of all of a response's calls that need it, before the first runs.

    Raises:
        Stop: the step can't go on before they have decided.
    """
    waiting = [(call, call.pending()) for call in calls if await call.waits()]
    open_calls = []
    for call, pending in waiting:
        if pending.kind is Kind.APPROVAL:
            call.decision = call.within.step.always.get((call.agent, call.tool.name))
        if call.decision is None:
            open_calls.append((call, pending))
    if not open_calls:
        return
    step = calls[0].within.step
    try:
        decisions = await step.decide([pending for _, pending in open_calls])
    except Exception as error:
        raise Stop(error) from error  # past all that may catch it on the way
    for call, pending in open_calls:
        call.decision = decisions[pending.position]
        step.granted[pending.position] = (pending.kind, call.decision)
        if call.decision.always:
            step.always[call.agent, call.tool.name] = call.decision
