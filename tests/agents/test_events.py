"""Events of a step on a real PostgreSQL: written without waiting, fenced, read live by many."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from timestep.agents.record import event_feed, events
from timestep.agents.record.event_feed import EventFeed, prune_events, read_events, watch
from timestep.agents.record.events import PER_ATTEMPT, Event, EventLog
from timestep.database.engine import Database

STEP = "5e1f0000-0000-0000-0000-000000000000"


@dataclass
class Held:
    """The lease's row, without its thread."""

    step_id: str = STEP
    attempt: int = 1


async def begin(database: Database, attempt: int = 1, step_id: str = STEP) -> Held:
    async with database.session() as session:
        upsert = "insert into steps (id, attempt) values (:id, :n) on conflict (id) do update set attempt = :n"
        await session.execute(text(upsert), {"id": step_id, "n": attempt})
    return Held(step_id, attempt)


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    log = EventLog(database, await begin(database))
    yield log
    await log.close()


def said(found: list[Event]) -> str:
    return "".join(event.data["delta"] for event in found if event.type == "output_text.delta")


async def cut_connections(database: Database) -> None:
    connection = await asyncpg.connect(database.timestep_url.replace("+asyncpg", ""), database="postgres")
    await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'timestep'")
    await connection.close()


@asynccontextmanager
async def away(url: str) -> AsyncIterator[None]:
    """The server's socket has another name, and who was connected is no more."""
    last = await asyncpg.connect(url)
    socket = Path(str(make_url(url).query["host"])) / ".s.PGSQL.5432"
    hidden = socket.rename(socket.with_name("hidden"))
    try:
        others = "pid <> pg_backend_pid() and backend_type = 'client backend'"
        await last.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {others}")
        await last.close()
        yield
    finally:
        hidden.rename(socket)


async def test_events_are_written_in_order_and_deltas_leave_together(database: Database, log: EventLog) -> None:
    log.publish("call.started", "a/0", kind="model-call", name="m")
    for number in range(300):
        log.publish("output_text.delta", "a/0", delta=f"{number} ")
    log.publish("call.finished", "a/0", kind="model-call", name="m", seconds=0.5)
    assert await log.flush()
    found = await read_events(database, STEP)
    assert [found[0].type, found[-1].type] == ["call.started", "call.finished"]
    assert said(found) == "".join(f"{number} " for number in range(300))
    assert len(found) < 50
    assert [event.id for event in found] == list(range(PER_ATTEMPT + 1, PER_ATTEMPT + 1 + len(found)))
    assert found[-1].data == {"kind": "model-call", "name": "m", "seconds": 0.5}


async def test_deltas_of_parallel_calls_stay_apart(database: Database, log: EventLog) -> None:
    for number in range(50):
        log.publish("output_text.delta", f"a/{number % 2}", delta=str(number % 2))
    log.publish("call.finished", "a/0")
    log.publish("output_text.delta", "a/0", delta="later")
    await log.flush()
    found = await read_events(database, STEP)
    assert said([event for event in found if event.position == "a/1"]) == "1" * 25
    of_first = [event for event in found if event.position == "a/0"]
    assert (of_first[-2].type, of_first[-1].data["delta"]) == ("call.finished", "later")


async def test_a_superseded_attempt_writes_nothing_and_its_ids_come_first(database: Database, log: EventLog) -> None:
    log.publish("step.started", attempt=1)
    await log.flush()
    newer = EventLog(database, await begin(database, 2))
    newer.publish("step.started", attempt=2)
    await newer.close()
    log.publish("call.finished", "a/0")
    await log.flush()
    log.publish("call.finished", "a/1")
    await log.flush()
    found = await read_events(database, STEP)
    assert [event.data for event in found] == [{"attempt": 1}, {"attempt": 2}]
    assert [event.id for event in found] == [PER_ATTEMPT + 1, 2 * PER_ATTEMPT + 1]


async def test_connections_that_are_cut_neither_lose_nor_double_an_event(database: Database, log: EventLog) -> None:
    async def cut() -> None:
        for _ in range(8):
            await asyncio.sleep(0.1)
            await cut_connections(database)

    cutting = asyncio.create_task(cut())
    expected = [f"{number} " for number in range(400)]
    for delta in expected:
        log.publish("output_text.delta", "a/0", delta=delta)
        await asyncio.sleep(0.002)
    await cutting
    assert await log.flush(10)
    assert said(await read_events(database, STEP)) == "".join(expected)


async def test_an_outage_holds_nobody_up_and_loses_nothing(
    database: Database, log: EventLog, postgres_url: str
) -> None:
    log.publish("step.started", attempt=1)
    await log.flush()
    async with away(postgres_url):
        begun = time.monotonic()
        for number in range(1000):
            log.publish("output_text.delta", "a/0", delta=f"{number} ")
        assert time.monotonic() - begun < 1
        assert not await log.flush(0.5)
    assert await log.flush(10)
    assert said(await read_events(database, STEP)) == "".join(f"{number} " for number in range(1000))


async def test_a_long_outage_gives_up_the_oldest_deltas_and_says_so(
    database: Database, log: EventLog, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_KEPT", 20_000)
    async with away(postgres_url):
        log.publish("call.started", "a/0")
        await asyncio.sleep(0.05)  # taken up, and tried in vain
        for number in range(100):
            log.publish("output_text.delta", f"a/{number}", delta=f"{number:03}" + "x" * 997)
        log.publish("call.finished", "a/99", seconds=1.0)
    assert await log.flush(10)
    found = await read_events(database, STEP)
    gaps = [event for event in found if event.type == "gap"]
    assert gaps and said(found).endswith("x" * 997)
    assert len(said(found)) <= 20_000
    assert sum(event.data["characters"] for event in gaps) + len(said(found)) == 100_000
    assert [found[0].type, found[-1].type] == ["call.started", "call.finished"]


async def test_closing_is_bounded_while_the_database_is_away(database: Database, postgres_url: str) -> None:
    log = EventLog(database, await begin(database))
    async with away(postgres_url):
        log.publish("step.started", attempt=1)
        begun = time.monotonic()
        await log.close(0.3)
        assert time.monotonic() - begun < 2
    log.publish("step.started", attempt=1)
    assert await read_events(database, STEP) == []


async def test_a_cancelled_step_still_writes_its_last_event(database: Database) -> None:
    lease = await begin(database)

    async def step() -> None:
        log = EventLog(database, lease)
        try:
            await asyncio.sleep(10)
        finally:
            log.publish("step.finished", status="cancelled")
            await log.close()

    running = asyncio.create_task(step())
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await read_events(database, STEP))[-1].data == {"status": "cancelled"}


async def test_what_postgresql_cannot_hold_is_replaced(database: Database, log: EventLog) -> None:
    half = "\ud83d"
    texts = {"k\0": [f"{half}\ude00", "\\u0000", "NaN"]}
    numbers = [float("nan"), float("-inf"), 1]
    for data in ({"delta": f"a\0b{half}"}, {"output": texts}, {"path": Path("/x")}, {"output": numbers}):
        log.publish("output_text.delta" if "delta" in data else "step.finished", **data)
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    log.publish("step.finished", **circle)
    assert await log.flush()
    assert [event.data for event in await read_events(database, STEP)] == [
        {"delta": "a\ufffdb\ufffd"},
        {"output": {"k\ufffd": ["\U0001f600", "\\u0000", "NaN"]}},
        {"path": "/x"},
        {"output": [None, None, 1]},
    ]


async def test_tools_publish_from_their_threads(database: Database, log: EventLog) -> None:
    def tool(number: int) -> None:
        for _ in range(100):
            log.publish("call.progress", f"a/0/{number}", number=number)

    await asyncio.gather(*(asyncio.to_thread(tool, number) for number in range(4)))
    await log.flush()
    found = await read_events(database, STEP, limit=1000)
    assert len(found) == 400


async def collect(into: list[Event], source: AsyncIterator[Event]) -> None:
    async for event in source:
        into.append(event)  # noqa: PERF401 - one by one, as they come


async def test_many_watch_a_step_live_each_from_where_it_was(database: Database, log: EventLog) -> None:
    feed = EventFeed(database)
    for number in range(1200):  # more than a feed keeps
        log.publish("call.finished", f"a/{number}")
    await log.flush()
    there = [event.id for event in await read_events(database, STEP, limit=5000)]
    afters = [0, there[3], there[-2], there[-1]]
    seen: list[list[Event]] = [[] for _ in afters]
    readers = [asyncio.create_task(collect(s, feed.watch(STEP, a))) for s, a in zip(seen, afters, strict=True)]
    await asyncio.sleep(0.5)
    for number in range(20):
        log.publish("output_text.delta", "b/0", delta=str(number % 10))
        await asyncio.sleep(0.03)
    before = [len(one) for one in seen]
    log.publish("step.finished", status="succeeded", output="done")
    await asyncio.wait_for(asyncio.gather(*readers), 5)
    everything = await read_events(database, STEP, limit=5000)
    for one, after, count in zip(seen, afters, before, strict=True):
        assert one == [event for event in everything if event.id > after]
        assert count > len([event for event in one if event.id <= there[-1]])  # deltas came before the end
    await feed.close()


async def test_watching_goes_on_over_cut_connections(database: Database, log: EventLog) -> None:
    seen: list[Event] = []
    watching = asyncio.create_task(collect(seen, watch(database, STEP)))
    for number in range(60):
        log.publish("call.finished", f"a/{number}")
        if number % 20 == 10:
            await cut_connections(database)
        await asyncio.sleep(0.02)
    log.publish("step.finished", status="succeeded")
    await asyncio.wait_for(watching, 10)
    assert [event.position for event in seen] == [*(f"a/{number}" for number in range(60)), None]


async def test_watching_goes_on_after_an_outage(database: Database, log: EventLog, postgres_url: str) -> None:
    seen: list[Event] = []
    log.publish("step.started", attempt=1)
    await log.flush()
    watching = asyncio.create_task(collect(seen, watch(database, STEP)))
    while not seen:
        await asyncio.sleep(0.02)
    async with away(postgres_url):
        log.publish("step.finished", status="succeeded")
        await asyncio.sleep(1.2)
        assert len(seen) == 1
    await asyncio.wait_for(watching, 10)
    assert [event.type for event in seen] == ["step.started", "step.finished"]


async def test_without_a_notification_it_takes_a_second_and_no_longer(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "CHANNEL", "nobody_notifies_here")
    watching = watch(database, STEP)
    first = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0.3)
    log.publish("step.started", attempt=1)
    assert (await asyncio.wait_for(first, 3)).type == "step.started"
    await watching.aclose()


async def test_a_step_that_ended_without_a_word_ends_its_watchers(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "ENDED_SECONDS", 0.2)
    final: dict[str, Any] = {}

    async def ended() -> dict[str, Any] | None:
        return final or None

    log.publish("step.started", attempt=1)
    await log.flush()
    seen: list[Event] = []
    watching = asyncio.create_task(collect(seen, watch(database, STEP, ended=ended)))
    await asyncio.sleep(1.5)
    assert not watching.done()
    final["status"] = "failed"
    await asyncio.wait_for(watching, 5)
    assert [(event.id, event.type) for event in seen[1:]] == [(0, "step.finished")]
    assert seen[1].data == {"status": "failed"}


async def test_who_comes_after_the_end_gets_the_rest_and_leaves(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "ENDED_SECONDS", 0.0)

    async def ended() -> dict[str, Any] | None:
        return {"status": "succeeded"}

    log.publish("step.started", attempt=1)
    log.publish("step.finished", status="succeeded")
    await log.flush()
    for after, count in ((0, 2), (PER_ATTEMPT + 1, 1), (PER_ATTEMPT + 2, 0), (10**15, 0)):
        seen: list[Event] = []
        await asyncio.wait_for(collect(seen, watch(database, STEP, after, ended)), 5)
        assert len(seen) == count


async def test_a_step_started_again_after_its_failure_is_watched_to_its_second_end(
    database: Database, log: EventLog
) -> None:
    log.publish("step.finished", status="failed")
    await log.close()
    again = EventLog(database, await begin(database, 2))
    again.publish("step.finished", status="succeeded")
    await again.close()
    seen: list[Event] = []
    await asyncio.wait_for(collect(seen, watch(database, STEP)), 5)
    assert [event.data["status"] for event in seen] == ["failed", "succeeded"]


async def test_old_events_are_pruned(database: Database) -> None:
    rows = [
        ("ended", 1, "output_text.delta", "3 hours", False),
        ("ended", 2, "call.finished", "2 hours", True),
        ("ended", 3, "step.finished", "2 hours", True),
        ("long", 1, "output_text.delta", "2 hours", True),  # whoever reads it may not be through
        ("long", 2, "step.finished", "59 minutes", True),
        ("again", 1, "output_text.delta", "3 hours", True),
        ("again", 2, "step.finished", "2 hours", True),
        ("again", 3, "step.started", "2 hours", True),  # after its failure
        ("waiting", 1, "output_text.delta", "29 days", True),
        ("waiting", 2, "call.started", "29 days", True),
        ("absent", 1, "output_text.delta", "31 days", False),
        ("absent", 2, "call.finished", "31 days", False),
        ("absent", 3, "call.finished", "29 days", True),
    ]
    async with database.session() as session:
        for step, number, kind, age, _ in rows:
            insert = f"insert into events values (:step, :id, :type, null, '{{}}', now() - interval '{age}')"
            await session.execute(text(insert), {"step": step, "id": number, "type": kind})
    assert await prune_events(database) == 3
    steps = dict.fromkeys(step for step, *_ in rows)
    left = [(step, event.id) for step in steps for event in await read_events(database, step)]
    assert left == [(step, number) for step, number, *_, stays in rows if stays]
