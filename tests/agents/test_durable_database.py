"""Steps on the ledger and the decisions of a real PostgreSQL, killed and started again as another attempt."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Agent

from storage.store import ObjectStore
from tests.agents import durable_agents
from tests.agents.durable_agents import YES, remember
from tests.agents.durably import Killed, MortalLedger, People, executed, new_step, run
from tests.agents.test_durable_tools import caller, output_of
from tests.agents.test_ledger import Attempts, process_ends_by_exception
from timestep.agents.durable.run import once
from timestep.agents.durable.tool_calls import cut_call
from timestep.agents.record.approvals import Approvals
from timestep.agents.record.ledger import MemoryLedger
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict
from timestep.database.engine import Database
from timestep.errors import ConflictError, UnitChangedError

__all__ = ["process_ends_by_exception"]


@pytest.fixture
async def attempts(database: Database, tmp_path: Path) -> AsyncIterator[Attempts]:
    attempts = Attempts(database, ObjectStore.open(f"local://{tmp_path}/storage"))
    yield attempts
    for lease in attempts.leases:
        await lease.close()


class Table:
    """Decides by the table of decisions, as people would between two processes."""

    def __init__(self, attempts: Attempts, cut: Verdict = Verdict.RUN_AGAIN) -> None:
        self.approvals = Approvals(attempts.database, "s")
        self.cut = cut

    async def __call__(self, calls: list[PendingCall]) -> dict[str, Decision]:
        await self.approvals.ask(calls)
        for call in await self.approvals.pending():
            cut = Decision(verdict=self.cut, text="given" if self.cut is Verdict.RESULT else None)
            await self.approvals.decide(call.position, cut if call.kind is Kind.CUT else YES[call.tool], by="test")
        return await self.approvals.decisions(calls)

    async def rows(self) -> dict[tuple[str, Kind], str]:
        return {(row.position, row.kind): row.status for row in await self.approvals.all()}


MAKES = [durable_agents.parallel, durable_agents.guarded, durable_agents.approved, durable_agents.approved_below]


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
async def test_killed_nothing_finished_is_repeated(
    attempts: Attempts, make: Callable[[Path], Agent[Any]], tmp_path: Path
) -> None:
    log, at, cut, killed = tmp_path / "log", 0, 0, 0
    while True:
        # Each attempt lives a little longer than the one before, since it begins where that had come to.
        at += 3
        ledger = MortalLedger(await attempts.open(), at, after=at % 2 == 0)
        step = new_step(ledger, decide=Table(attempts), attempt=attempts.leases[-1].attempt)
        try:
            output = (await run(step, make(log))).final_output
            break
        except Killed:
            cut, killed = cut + len(ledger.open), killed + 1
    assert killed >= 3
    clean = tmp_path / "clean"
    assert output == (await run(new_step(MemoryLedger("s"), decide=People(YES)), make(clean))).final_output
    assert not executed(clean) - executed(log)
    assert (executed(log) - executed(clean)).total() <= cut
    assert await attempts.execute("select 1 from units where finished_at is null") == []


async def test_an_approval_is_consumed_by_the_call_that_it_lets_run(attempts: Attempts, tmp_path: Path) -> None:
    table = Table(attempts)
    await run(new_step(await attempts.open(), decide=table), durable_agents.approved(tmp_path / "log"))
    assert await table.rows() == {
        ("payer/0/0", Kind.APPROVAL): "consumed",
        ("payer/1/0", Kind.QUESTION): "decided",
    }


@pytest.mark.parametrize(("verdict", "runs"), [(Verdict.RUN_AGAIN, 2), (Verdict.RESULT, 1)])
async def test_a_call_that_was_approved_and_cut_waits_for_a_person(
    attempts: Attempts, tmp_path: Path, verdict: Verdict, runs: int
) -> None:
    log, table = tmp_path / "log", Table(attempts, verdict)
    agent = caller(remember(log, name_override="pay", needs_approval=True), arguments={"text": "x"})
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=4), decide=table), agent)
    assert await table.rows() == {("a/0/0", Kind.APPROVAL): "consumed"}
    ledger = await attempts.open()
    assert [unit.request["arguments"] for unit in ledger.cut()] == ['{"text": "x"}']
    step = new_step(ledger, decide=table)
    await run(step, agent)
    assert executed(log) == {"tool x": runs}
    assert output_of(step) == ("given" if verdict is Verdict.RESULT else "remembered x")
    assert await table.rows() == {("a/0/0", Kind.APPROVAL): "consumed", ("a/0/0", Kind.CUT): "consumed"}


async def test_a_cut_call_that_was_cut_again_is_asked_for_again(attempts: Attempts, tmp_path: Path) -> None:
    log, table = tmp_path / "log", Table(attempts)
    agent = caller(once(remember(log)), arguments={"text": "x"})
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=4), decide=table), agent)
    for _ in range(2):
        # The model's answer is on record: begin of the tool's call is the second operation, its end the third.
        with pytest.raises(Killed):
            await run(new_step(MortalLedger(await attempts.open(), at=3), decide=table), agent)
    assert executed(log) == {"tool x": 3}
    await run(new_step(await attempts.open(), decide=table), agent)
    assert executed(log) == {"tool x": 4}


async def test_a_result_that_a_person_gave_outlives_another_crash(attempts: Attempts, tmp_path: Path) -> None:
    log, table = tmp_path / "log", Table(attempts, Verdict.RESULT)
    agent = caller(once(remember(log)), arguments={"text": "x"})
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=4), decide=table), agent)
    with pytest.raises(Killed):  # between the beginning, which consumes the decision, and the end
        await run(new_step(MortalLedger(await attempts.open(), at=3), decide=table), agent)
    assert await table.rows() == {("a/0/0", Kind.CUT): "consumed"}
    table.cut = Verdict.RUN_AGAIN  # what they would say now: nobody asks them
    step = new_step(await attempts.open(), decide=table)
    await run(step, agent)
    assert output_of(step) == "given" and executed(log) == {"tool x": 1}


@pytest.mark.parametrize(("tool", "verdict", "output", "runs"), [
    ("remember", Verdict.RUN_AGAIN, "remembered x", 2),
    ("remember", Verdict.RESULT, "given", 1),
    ("another", Verdict.RESULT, "remembered x", 2),
])  # fmt: skip
async def test_where_changes_are_accepted_the_decision_is_of_the_call_that_was_cut(
    attempts: Attempts, tmp_path: Path, tool: str, verdict: Verdict, output: str, runs: int
) -> None:
    log, table = tmp_path / "log", Table(attempts, verdict)
    agent = caller(once(remember(log)), arguments={"text": "x"})
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=4), decide=table), agent)
    # As if the code had made another call there, then.
    request = json.dumps({"tool": tool, "arguments": '{"text": "before"}', "agent": "a", "call_id": "c"})
    await attempts.execute("update units set name = $1, request = $2, fingerprint = 'f' where once", tool, request)
    with pytest.raises(UnitChangedError):
        await run(new_step(await attempts.open(), decide=table), agent)
    await attempts.execute("update steps set accept_changes = true")
    ledger = await attempts.open()
    # Before anything runs, as a step does it: decisions are asked for up front.
    step = new_step(ledger, decide=table, decisions=await table([cut_call(unit) for unit in ledger.cut()]))
    await run(step, agent)
    assert output_of(step) == output and executed(log) == {"tool x": runs}
    assert await table.rows() == {("a/0/0", Kind.CUT): "consumed"}


async def test_a_decision_used_by_another_process_lets_nothing_run(attempts: Attempts, tmp_path: Path) -> None:
    log = tmp_path / "log"
    tool = remember(log, name_override="pay", needs_approval=True)
    table = Table(attempts)

    async def decided_and_used(calls: list[PendingCall]) -> dict[str, Decision]:
        decisions = await table(calls)
        await attempts.execute("update approvals set status = 'consumed'")
        return decisions

    with pytest.raises(ConflictError, match="'pay' at 'a/0/0' was used already"):
        await run(new_step(await attempts.open(), decide=decided_and_used), caller(tool, arguments={"text": "x"}))
    assert executed(log) == {}


async def test_a_changed_step_goes_on_from_the_record_where_that_was_accepted(
    attempts: Attempts, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    agent = caller(remember(log), arguments={"text": "x"})
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=5)), agent)
    agent.instructions = "Be brief."
    with pytest.raises(UnitChangedError, match="instructions"):
        await run(new_step(await attempts.open()), agent)
    await attempts.execute("update steps set accept_changes = true")
    assert (await run(new_step(await attempts.open()), agent)).final_output == "done"
    assert executed(log) == {"tool x": 1}
