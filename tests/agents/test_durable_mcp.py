"""Tools of a real MCP server over stdio: connected by the step, their calls recorded as any other."""

import sys
from pathlib import Path
from typing import Any

import pytest
from agents import Agent

pytest.importorskip("mcp")
from agents.mcp import MCPServerStdio

from tests.agents.durable_agents import NamedModel
from tests.agents.durably import Killed, MemoryAttempts, MortalLedger, People, executed, new_step, run
from tests.conftest import ROOT
from tests.scripted import Plan
from timestep.agents.durable.tool_calls import idempotency_key
from timestep.agents.record.waiting import Decision, Verdict

SERVER = Path(__file__).with_name("mcp_server.py")


def noter(log: Path, **options: Any) -> Agent[Any]:
    command = {"command": sys.executable, "args": [str(SERVER), str(log)], "env": {"PYTHONPATH": str(ROOT)}}
    server = MCPServerStdio(command, name="notes", client_session_timeout_seconds=30, **options)  # type: ignore[arg-type]
    plan: Plan = [[("note", {"text": "a"}), ("note", {"text": "b"})], "done"]
    return Agent(name="noter", model=NamedModel("noter", plan, log), mcp_servers=[server])


def outputs(step: Any) -> list[str]:
    return [message["content"] for message in step.messages if message["role"] == "tool"]


async def test_a_call_of_an_mcp_tool_that_finished_is_not_repeated(tmp_path: Path) -> None:
    log, attempts = tmp_path / "log", MemoryAttempts()
    agent = noter(log)
    # Operations 7 and 8 are of the second model call, after both tools.
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=7)), agent)
    step = new_step(await attempts.open(), attempt=2)
    assert (await run(step, agent)).final_output == "done"
    assert executed(log) == {"model noter after 0": 1, "tool a": 1, "tool b": 1, "model noter after 2": 1}
    assert all("noted" in str(output) for output in outputs(step))
    # Closed again: the agent is as it was given.
    assert agent.mcp_servers[0].session is None  # type: ignore[attr-defined]


async def test_an_mcp_servers_tools_can_need_approval(tmp_path: Path) -> None:
    log = tmp_path / "log"
    people = People({"note": Decision(verdict=Verdict.APPROVE)})
    step = new_step(await MemoryAttempts().open(), decide=people)
    outer = noter(log, require_approval="always")
    plan: Plan = [[("ask_noter", {"input": "x"})], "asked"]
    agent = Agent(name="outer", model=NamedModel("outer", plan, log), tools=[outer.as_tool("ask_noter", "Ask.")])
    assert (await run(step, agent)).final_output == "asked"
    assert [call.position for call in people.asked] == ["outer/0/0/noter/0/0", "outer/0/0/noter/0/1"]
    assert executed(log)["tool a"] == executed(log)["tool b"] == 1


async def test_an_mcp_server_is_told_the_key_of_each_call_beside_its_owners_own_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    agent = noter(log, tool_meta_resolver=lambda context: {"mine": context.tool_name})
    for attempts in (MemoryAttempts(), MemoryAttempts()):  # the server is the same, and so is the step's id
        await run(new_step(await attempts.open()), agent)
    told = executed(tmp_path / "log.keys")
    assert told == {f"{text} {idempotency_key('s', f'noter/0/{at}')} note": 2 for at, text in enumerate("ab")}
