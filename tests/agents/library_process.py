"""A program on the library, for the tests of run states: `python -m tests.agents.library_process`, JSON in and out.

It loads the state from its store, decides what waits, runs on (or starts), saves where it waits again.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from agents import Agent, FunctionTool, Tool, function_tool, set_tracing_disabled

from tests.scripted import PlannedModel, append
from timestep import RunStateStore, consume_result, run_agent


def tool(name: str, log: Path, *, needs_approval: bool = True) -> FunctionTool:
    def act(what: str) -> str:
        append(log, f"{name} {what}")
        return f"{name} did {what}"

    return function_tool(act, name_override=name, needs_approval=needs_approval)


def build(scenario: str, log: Path) -> Agent[Any]:
    """One agent graph for each scenario."""

    def agent(name: str, plan: Any, tools: list[Tool], **more: Any) -> Agent[Any]:
        return Agent(name=name, model=PlannedModel(plan, log), tools=tools, **more)

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


async def main(asked: dict[str, Any]) -> dict[str, Any]:
    agent = build(asked["scenario"], Path(asked["log"]))
    where = {"session_id": asked["session"]} if "session" in asked else {"path": asked["path"]}
    store = RunStateStore(agent=agent, **where)
    state = await store.load(context=asked.get("context"))
    if state is not None:
        for item in state.get_interruptions():
            verdict = asked["decide"][str(item.name)]
            if verdict in ("approve", "always"):
                state.approve(item, always_approve=verdict == "always")
            elif verdict in ("reject", "never"):
                state.reject(item, always_reject=verdict == "never", rejection_message="not today")
    given: Any = "go" if state is None else state
    # A dictionary survives; what the tools of the first process saw is there in the second.
    options: dict[str, Any] = {"context": {"user": "k"}} if state is None else {}
    result = await consume_result(await run_agent(agent, given, stream=asked.get("stream", False), **options))
    waiting = [[item.agent.name, item.name, item.arguments] for item in result.interruptions]
    await (store.save(result.to_state()) if waiting else store.clear())
    return {
        "output": result.final_output,
        "last": result.last_agent.name,
        "context": result.context_wrapper.context,
        "waiting": waiting,
        "pid": os.getpid(),
    }


if __name__ == "__main__":
    set_tracing_disabled(True)
    print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
