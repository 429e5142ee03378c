"""The record of a step's units: on a real PostgreSQL, and in memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from storage.store import ObjectStore
from timestep.agents.record import lease as lease_module
from timestep.agents.record import ledger as ledger_module
from timestep.agents.record.lease import Lease
from timestep.agents.record.ledger import LARGE, Begin, DatabaseLedger, Ledger, MemoryLedger
from timestep.agents.record.waiting import Kind
from timestep.database.engine import Database
from timestep.errors import ConflictError, ServiceUnavailableError, UnitChangedError


class Ended(asyncio.CancelledError):
    """Instead of the end of the process; ends a lease's thread without a word."""


@pytest.fixture(autouse=True)
def process_ends_by_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> NoReturn:
        raise Ended(code)

    monkeypatch.setattr(lease_module, "end_process", end)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(f"local://{tmp_path}/storage")


class Attempts:
    """Attempts of one step, one after the other; each would be a process of its own."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self.database, self.store = database, store
        self.leases: list[Lease] = []

    async def lease(self, step_id: str = "s") -> Lease:
        """The next attempt; in this process it needs not wait for the end of the one before."""
        lease_module._leases.pop(step_id, None)
        self.leases.append(await Lease.acquire(self.database, step_id))
        return self.leases[-1]

    async def open(self, step_id: str = "s", patience: float = 20.0) -> DatabaseLedger:
        return await DatabaseLedger.open(self.database, await self.lease(step_id), self.store, patience)

    async def execute(self, sql: str, *values: Any) -> Any:
        connection = await self.database.connect()
        try:
            return await connection.fetch(sql, *values)
        finally:
            await connection.close()


@pytest.fixture
async def attempts(database: Database, store: ObjectStore) -> AsyncIterator[Attempts]:
    attempts = Attempts(database, store)
    yield attempts
    for lease in attempts.leases:
        await lease.close()


def call(position: str = "a/0", fingerprint: str = "f", **options: Any) -> Begin:
    return Begin(position, "tool-call", "tool", fingerprint, **options)


async def finished(ledger: Ledger, begin: Begin, result: Any = "done") -> None:
    assert await ledger.begin(begin) is None
    await ledger.finish(begin.position, result)


async def test_a_finished_unit_answers_the_next_attempt_and_this_one(attempts: Attempts) -> None:
    ledger = await attempts.open()
    await finished(ledger, call(), {"b": 1, "a": [1.0, None]})
    for again in (ledger, await attempts.open()):
        recorded = await again.begin(call())
        assert recorded is not None and recorded.finished
        assert json.dumps(recorded.result) == '{"b": 1, "a": [1.0, null]}'


async def test_a_unit_that_was_not_finished_runs_again(attempts: Attempts) -> None:
    await (await attempts.open()).begin(call())
    assert await (await attempts.open()).begin(call()) is None


async def test_steps_and_positions_share_nothing(attempts: Attempts) -> None:
    await finished(await attempts.open("s"), call("a/0"))
    assert await (await attempts.open("other")).begin(call("a/0")) is None
    assert await (await attempts.open("s")).begin(call("a/1")) is None


@pytest.mark.parametrize(
    "result",
    [
        "",
        "nul \x00",
        "\ud800 lone",
        1e400,
        {"x": float("nan")},
        10**30,
        1e22,
        None,
        ["x" * LARGE],
        {"k": {"z": 1, "a": 2}},
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_any_json_comes_back_as_it_was(attempts: Attempts, result: Any) -> None:
    await finished(await attempts.open(), call(), result)
    recorded = await (await attempts.open()).begin(call())
    assert recorded is not None
    assert json.dumps(recorded.result) == json.dumps(result)


async def test_a_large_result_is_an_object_in_storage(attempts: Attempts) -> None:
    await finished(await attempts.open(), call(), "x" * (LARGE + 1))
    (row,) = await attempts.execute("select result, result_reference from units")
    assert row["result"] is None
    assert json.loads(row["result_reference"])["key"].startswith("units/")


async def test_another_request_at_a_recorded_position_is_refused_by_name(attempts: Attempts) -> None:
    await finished(await attempts.open(), call(fingerprint="before"))
    with pytest.raises(UnitChangedError, match=r"at 'a/0'.*timestep resume s --accept-changes"):
        await (await attempts.open()).begin(call(fingerprint="after"))


async def test_accepted_changes_go_on_from_the_record(attempts: Attempts) -> None:
    ledger = await attempts.open()
    await finished(ledger, call(fingerprint="before"), "kept")
    await ledger.begin(call("a/1", "before"))
    await attempts.execute("update steps set accept_changes = true")
    ledger = await attempts.open()
    recorded = await ledger.begin(call(fingerprint="after"))
    assert recorded is not None and recorded.result == "kept"
    assert await ledger.begin(call("a/1", "after")) is None
    other = Begin("a/0", "tool-call", "another tool", "after")
    assert await ledger.begin(other) is None, "another tool's result is no answer"


async def test_parallel_units_are_all_recorded(attempts: Attempts) -> None:
    ledger = await attempts.open()
    await attempts.execute("update steps set crashes = 3")
    ledger._lease.crashes = 3  # so that they all want to forgive the crashes too

    async def work(number: int) -> None:
        await finished(ledger, call(f"a/0/{number}"), number)

    await asyncio.gather(*(work(number) for number in range(40)))
    again = await attempts.open()
    results = [await again.begin(call(f"a/0/{number}")) for number in range(40)]
    assert [recorded and recorded.result for recorded in results] == list(range(40))


async def test_progress_forgives_crashes(attempts: Attempts) -> None:
    await attempts.open()
    await attempts.execute("update steps set crashes = 3")
    ledger = await attempts.open()
    await ledger.begin(call())
    assert (await attempts.execute("select crashes from steps"))[0]["crashes"] == 3
    await ledger.finish("a/0", 1)
    assert (await attempts.execute("select crashes from steps"))[0]["crashes"] == 0


async def test_a_superseded_attempt_records_nothing_and_ends(attempts: Attempts) -> None:
    old = await attempts.open()
    await old.begin(call("a/0"))
    new = await attempts.open()
    await new.begin(call("a/0"))
    for work in (old.begin(call("a/1")), old.finish("a/0", "from the old"), old.check()):
        with pytest.raises(Ended):
            await work
    rows = await attempts.execute("select position, attempt, result from units")
    assert [(row["position"], row["attempt"], row["result"]) for row in rows] == [("a/0", 2, None)]


async def test_begin_waits_for_a_takeover_under_way_and_loses(attempts: Attempts) -> None:
    old = await attempts.open()
    newcomer = await attempts.database.connect()
    takeover = newcomer.transaction()
    await takeover.start()
    await newcomer.execute("update steps set attempt = attempt + 1")
    beginning = asyncio.create_task(old.begin(call()))
    await asyncio.sleep(0.2)
    assert not beginning.done()
    await takeover.commit()
    with pytest.raises(Ended):
        await beginning
    assert await newcomer.fetchval("select count(*) from units") == 0
    await newcomer.close()


async def test_only_once_calls_of_earlier_attempts_are_cut(attempts: Attempts) -> None:
    ledger = await attempts.open()
    await ledger.begin(call("a/0/0", once=True))
    await ledger.begin(call("a/0/1"))
    await finished(ledger, call("a/0/2", once=True))
    assert ledger.cut() == []
    assert [unit.position for unit in (await attempts.open()).cut()] == ["a/0/0"]


APPROVAL = """
    insert into approvals (step_id, position, kind, call_id, agent, tool, arguments, digest, status)
    values ('s', 'a/0', $1, 'c', 'agent', 'tool', '{}', $2, $3)"""


async def test_a_decision_is_used_once_and_only_for_its_call(attempts: Attempts) -> None:
    ledger = await attempts.open()
    await attempts.execute(APPROVAL, "approval", "digest", "decided")
    with pytest.raises(ConflictError):
        await ledger.begin(call(consume=(Kind.APPROVAL, "of another call")))
    assert await attempts.execute("select 1 from units") == []
    assert await ledger.begin(call(once=True, consume=(Kind.APPROVAL, "digest"))) is None
    assert (await attempts.execute("select status from approvals"))[0]["status"] == "consumed"
    # The same attempt may have lost the answer; the next one must ask again.
    assert await ledger.begin(call(once=True, consume=(Kind.APPROVAL, "digest"))) is None
    with pytest.raises(ConflictError, match="was cut"):
        await (await attempts.open()).begin(call(once=True, consume=(Kind.APPROVAL, "digest")))


async def test_a_pending_decision_lets_nothing_run(attempts: Attempts) -> None:
    ledger = await attempts.open()
    await attempts.execute(APPROVAL, "approval", "digest", "pending")
    with pytest.raises(ConflictError):
        await ledger.begin(call(consume=(Kind.APPROVAL, "digest")))


async def test_a_cut_once_call_runs_again_by_a_decision_only(attempts: Attempts) -> None:
    await (await attempts.open()).begin(call(once=True))
    ledger = await attempts.open()
    with pytest.raises(ConflictError, match="was cut"):
        await ledger.begin(call(once=True))
    await attempts.execute(APPROVAL, "cut", "digest", "decided")
    assert await ledger.begin(call(once=True, consume=(Kind.CUT, "digest"))) is None
    await ledger.finish("a/0", "the second time")


async def test_an_outage_is_waited_for_and_then_named(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = await attempts.open(patience=3.0)
    await ledger.begin(call())
    others = (
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'timestep' and pid <> pg_backend_pid()"
    )
    await attempts.execute(others)
    await ledger.finish("a/0", 1)
    await attempts.execute(others)

    async def away(**_: Any) -> NoReturn:
        raise ServiceUnavailableError("database", "postgresql://nowhere")

    monkeypatch.setattr(attempts.database, "connect", away)
    with pytest.raises(ServiceUnavailableError):
        await ledger.begin(call("a/1"))


@pytest.mark.parametrize("result", ["x" * (LARGE + 1), [float("inf"), "\x00"]], ids=["large", "no JSON"])
async def test_storage_that_refuses_loses_no_result(attempts: Attempts, tmp_path: Path, result: Any) -> None:
    tmp_path.joinpath("storage", "units").write_text("where the folder of results would be")
    await finished(await attempts.open(), call(), result)
    recorded = await (await attempts.open()).begin(call())
    assert recorded is not None and recorded.result == result


async def test_what_was_done_is_recorded_after_any_outage(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = await attempts.open(patience=0.2)
    await ledger.begin(call())
    await ledger.close()

    async def away(**_: Any) -> NoReturn:
        raise ServiceUnavailableError("database", "postgresql://nowhere")

    with monkeypatch.context() as patched:
        patched.setattr(attempts.database, "connect", away)
        finishing = asyncio.create_task(ledger.finish("a/0", "dear"))
        await asyncio.sleep(1)
    await finishing
    recorded = await (await attempts.open()).begin(call())
    assert recorded is not None and recorded.result == "dear"


async def test_a_connection_that_answers_nothing_any_more_is_left(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "COMMAND_SECONDS", 0.5)
    ledger = await attempts.open()
    held = await attempts.database.connect()
    transaction = held.transaction()
    await transaction.start()
    await held.execute("select from steps for update")
    beginning = asyncio.create_task(ledger.begin(call()))
    connection = ledger._connection
    await asyncio.sleep(1.2)
    assert ledger._connection is not connection
    await transaction.rollback()
    await held.close()
    assert await beginning is None


async def test_memory_keeps_what_was_done_too() -> None:
    ledger = MemoryLedger()
    await finished(ledger, call(), 1)
    recorded = await ledger.begin(call())
    assert recorded is not None and recorded.result == 1
    with pytest.raises(UnitChangedError):
        await ledger.begin(call(fingerprint="other"))
