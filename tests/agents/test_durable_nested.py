"""Runs that tools and hooks start within a step: which run is which, whatever comes first."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, AgentHooks, Runner, RunState, function_tool

from tests.agents.durable_agents import agent, remember
from tests.agents.durably import Killed, MemoryAttempts, MortalLedger, People, executed, new_step, run
from timestep.agents.record.ledger import MemoryLedger
from timestep.agents.record.waiting import Decision, Verdict
from timestep.errors import UsageError

APPROVED = {"pay": Decision(verdict=Verdict.APPROVE)}


def asking_first(log: Path, equal: bool) -> Agent[Any]:
    """A hook asks another agent before each tool's call, of which the second needs an approval."""
    inner = agent(log, "inner", ["said"])

    class Hooks(AgentHooks[Any]):
        async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
            await Runner.run(inner, "fine?" if equal else f"fine? {context.tool_arguments}")

    calls: list[Any] = [[("remember", {"text": "x"})], [("pay", {"text": "y"})], [("remember", {"text": "z"})], "done"]
    pay = remember(log, name_override="pay", needs_approval=True)
    return agent(log, "outer", calls, tools=[remember(log), pay], hooks=Hooks())


@pytest.mark.parametrize("equal", [False, True])
async def test_runs_of_hooks_are_not_mixed_up_after_an_approval(equal: bool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    step = new_step(MemoryLedger("s"), decide=People(APPROVED))
    assert (await run(step, asking_first(log, equal))).final_output == "done"
    asked = [call.position for call in step.calls if "/inner/" in call.position]
    assert len(set(asked)) == executed(log)["model inner after 0"] == 3


async def test_runs_started_at_the_same_time_keep_their_record_in_another_order(tmp_path: Path) -> None:
    log, attempts = tmp_path / "log", MemoryAttempts()
    inner = agent(log, "inner", ["said"])
    waits = {"x": 0.0, "y": 0.05}

    @function_tool
    async def both() -> str:
        async def one(about: str) -> str:
            await asyncio.sleep(waits[about])
            return str((await Runner.run(inner, about)).final_output)

        return " ".join(await asyncio.gather(one("x"), one("y")))

    outer = agent(log, "outer", [[("both", {})], "done"], tools=[both])
    # Operation 8 is the end of the tool's call, after both runs within it have ended.
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=8)), outer)
    waits.update(x=0.05, y=0.0)
    await run(new_step(await attempts.open(), attempt=2), outer)
    assert executed(log)["model inner after 0"] == 2


async def test_equal_runs_of_one_tool_are_counted(tmp_path: Path) -> None:
    log, attempts = tmp_path / "log", MemoryAttempts()
    inner = agent(log, "inner", ["said"])

    @function_tool
    async def again() -> str:
        return " ".join([str((await Runner.run(inner, "x")).final_output) for _ in range(2)])

    outer = agent(log, "outer", [[("again", {})], "done"], tools=[again])
    for attempt in (1, 2):
        step = new_step(await attempts.open(), attempt=attempt)
        await run(step, outer)
        assert executed(log)["model inner after 0"] == 2
        assert len({call.position for call in step.calls if "/inner/" in call.position}) == 2


async def test_a_tool_may_approve_what_a_run_of_its_own_waits_for(tmp_path: Path) -> None:
    log, attempts = tmp_path / "log", MemoryAttempts()
    pay = remember(log, name_override="pay", needs_approval=True)
    inner = agent(log, "inner", [[("pay", {"text": "1"})], [("pay", {"text": "2"})], "paid"], tools=[pay])

    @function_tool(failure_error_function=None)
    async def consult() -> str:
        result = await Runner.run(inner, "go")
        while result.interruptions:
            state = result.to_state()
            for waiting in state.get_interruptions():
                state.approve(waiting)
            result = await Runner.run(inner, state)
        return str(result.final_output)

    outer = agent(log, "outer", [[("consult", {})], "done"], tools=[consult])
    found = []
    for attempt in (1, 2):
        step = new_step(await attempts.open(), attempt=attempt)
        await run(step, outer)
        found.append([call.position.replace("outer/0/0/", "") for call in step.calls])
        assert executed(log)["tool 1"] == executed(log)["tool 2"] == 1
    assert found[0] == found[1]
    places = [position.partition("/inner/")[2] for position in found[0] if "/inner/" in position]
    assert places == ["0", "0/0", "1", "1/0", "2"]


@pytest.mark.parametrize("through_json", [False, True])
async def test_a_state_without_the_steps_agents_is_refused(through_json: bool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pay = remember(log, name_override="pay", needs_approval=True)
    inner = agent(log, "inner", [[("pay", {"text": "1"})], "paid"], tools=[pay])
    elsewhere = (await Runner.run(inner, "go")).to_state()

    @function_tool
    async def consult() -> str:
        state = elsewhere
        if through_json:
            state = await RunState.from_json(inner, (await Runner.run(inner, "go")).to_state().to_json())
        return str((await Runner.run(inner, state)).final_output)

    outer = agent(log, "outer", [[("consult", {})], "done"], tools=[consult])
    with pytest.raises(UsageError, match="'inner' can't go on in step 's' from a state of elsewhere"):
        await run(new_step(MemoryLedger("s")), outer)
