"""A program on the library, for the tests of run states: `python -m tests.agents.library_process`, JSON in and out.

For each run that it is asked for: load its state, decide what waits, run on (or start), save where it waits again.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents import Agent, FunctionTool, Tool, function_tool, set_tracing_disabled
from openai.types.responses import Response, ResponseCompletedEvent

from tests.scripted import PlannedModel, append
from timestep import RunStateStore, consume_result, run_agent


class Streamed(PlannedModel):
    """A planned model whose answers can be streamed, each as one event."""

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        answer = await self.get_response(*args, **kwargs)
        whole = Response(
            id="r",
            created_at=0,
            model="planned",
            object="response",
            output=answer.output,
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(type="response.completed", response=whole, sequence_number=0)


def tool(name: str, log: Path, *, needs_approval: bool = True) -> FunctionTool:
    def act(what: str) -> str:
        append(log, f"{name} {what}")
        return f"{name} did {what}"

    return function_tool(act, name_override=name, needs_approval=needs_approval)


def build(scenario: str, log: Path) -> Agent[Any]:
    """One agent graph for each scenario."""

    def agent(name: str, plan: Any, tools: list[Tool], **more: Any) -> Agent[Any]:
        return Agent(name=name, model=Streamed(plan, log), tools=tools, **more)

    send, wipe, look = tool("send", log), tool("wipe", log), tool("look", log, needs_approval=False)
    if scenario == "parallel":
        calls = [("look", {"what": "a"}), ("send", {"what": "b"}), ("wipe", {"what": "c"})]
        return agent("clerk", [calls, "done"], [send, wipe, look])
    if scenario == "twice":
        return agent("clerk", [[("send", {"what": "a"})], [("send", {"what": "b"})], "done"], [send])
    if scenario == "nested":
        inner = agent("inner", [[("send", {"what": "deep"})], "inner done"], [send])
        return agent("outer", [[("ask", {"input": "go"})], "done"], [inner.as_tool("ask", "Ask.")])
    if scenario == "handoff":
        second = agent("second", [[("never", {})], [("send", {"what": "b"})], "second done"], [send])
        return agent("first", [[("transfer_to_second", {})], "no"], [], handoffs=[second])
    raise AssertionError(scenario)


async def go_on(asked: dict[str, Any]) -> dict[str, Any]:
    log = Path(asked["log"])
    agent = build(asked["scenario"], log)
    store = RunStateStore(agent=agent, **asked["store"])
    state = await store.load()
    if state is not None:
        for item in state.get_interruptions():
            verdict = asked["decide"].get(item.name)
            if verdict in ("approve", "always"):
                state.approve(item, always_approve=verdict == "always")
            elif verdict in ("reject", "never"):
                state.reject(item, always_reject=verdict == "never", rejection_message="not today")
    given: Any = "go" if state is None else state
    # A dictionary survives: what the first process gave is there in the second.
    options: dict[str, Any] = {"context": {"user": "k"}} if state is None else {}
    # Stream every other time: a state goes on in either way.
    result = await consume_result(await run_agent(agent, given, stream=state is not None, **options))
    waiting = [[item.agent.name, item.name, item.arguments] for item in result.interruptions]
    await (store.save(result.to_state()) if waiting else store.clear())
    lines = log.read_text().splitlines() if log.exists() else []
    return {
        "output": result.final_output,
        "last": result.last_agent.name,
        "context": result.context_wrapper.context,
        "waiting": waiting,
        "executed": [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("model")],
        "pid": os.getpid(),
    }


async def main(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: await go_on(asked) for name, asked in runs.items()}


if __name__ == "__main__":
    set_tracing_disabled(True)
    print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
