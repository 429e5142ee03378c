"""Each thing of the SDK, killed at every operation of its record and started again: nothing finished is repeated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Agent

from tests.agents import durable_agents
from tests.agents.durably import Killed, MemoryAttempts, MortalLedger, People, executed, new_step, run
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict

Make = Callable[[Path], Agent[Any]]


class Crew:
    """Approves, answers, and lets cut calls run again."""

    def __init__(self) -> None:
        self.people = People(durable_agents.YES)

    async def __call__(self, calls: list[PendingCall]) -> dict[str, Decision]:
        cut = {call.position: Decision(verdict=Verdict.RUN_AGAIN) for call in calls if call.kind is Kind.CUT}
        return cut | await self.people([call for call in calls if call.kind is not Kind.CUT])


async def killed_at(attempts: Any, agent: Agent[Any], at: int, after: bool) -> tuple[Any, int]:
    """The output after a kill and a new start, and how many units were cut."""
    ledger = MortalLedger(await attempts.open(), at, after)
    with pytest.raises(Killed):
        await run(new_step(ledger, decide=Crew()), agent)
    cut = len(ledger.open)
    result = await run(new_step(await attempts.open(), attempt=2, decide=Crew()), agent)
    return result.final_output, cut


@pytest.mark.parametrize("make", durable_agents.ALL, ids=lambda make: make.__name__)
async def test_killed_anywhere_nothing_finished_is_repeated(make: Make, tmp_path: Path) -> None:
    whole = MortalLedger(await MemoryAttempts().open())
    step = new_step(whole, decide=Crew())
    output = (await run(step, make(tmp_path / "whole"))).final_output
    once = executed(tmp_path / "whole")
    assert whole.operations > 4
    # Every operation of a short step, and of a long one every second or third, before as well as after it.
    for at in range(1, whole.operations + 1, 1 + whole.operations // 16):
        for after in (False, True):
            log = tmp_path / f"{at}-{after}"
            found, cut = await killed_at(MemoryAttempts(), make(log), at, after)
            assert found == output, (at, after)
            repeated = executed(log) - once
            assert not once - executed(log)
            assert repeated.total() <= cut, (at, after, repeated)


@pytest.mark.parametrize("make", durable_agents.ALL, ids=lambda make: make.__name__)
async def test_what_a_replay_tells_is_what_was_told(make: Make, tmp_path: Path) -> None:
    attempts = MemoryAttempts()
    first = new_step(await attempts.open(), decide=Crew())
    await run(first, make(tmp_path / "log"))
    before = executed(tmp_path / "log")
    again = new_step(await attempts.open(), attempt=2, decide=Crew())
    await run(again, make(tmp_path / "log"))
    assert executed(tmp_path / "log") == before
    assert sorted(map(repr, again.calls)) == sorted(map(repr, first.calls))
    assert again.usage() == first.usage()
    assert again.messages == first.messages
