"""The reading side of a step's events: pages of them, and watching them as they come.

A process listens on one connection for all steps, and reads each change of a step once for all who watch it.
A notification says only *that* something came; what came is always read, so a lost one costs a second at most.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from timestep.agents.record.events import CHANNEL, FINISHED, Event
from timestep.database.engine import Database
from timestep.database.models import EventRow
from timestep.errors import TimestepError

logger = logging.getLogger(__name__)

PAGE = 500
POLL_SECONDS = 1.0  # to look without having been notified
ENDED_SECONDS = 2.0  # of silence, to ask whether the step has ended without saying so
KEEP_EVENTS = 1000  # the last ones of a watched step, for those who watch a little behind
AWAY = (OSError, TimestepError, DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError)

# What a step ended with (the data of its ``step.finished``), None while it may still go on.
Ended = Callable[[], Awaitable[dict[str, Any] | None]]


async def read_events(database: Database, step_id: str, after: int = 0, limit: int = PAGE) -> list[Event]:
    """The step's events with ids above ``after``, in order, at most ``limit``.

    Raises:
        ServiceUnavailableError: the database is away.
    """
    columns = (EventRow.id, EventRow.type, EventRow.position, EventRow.data, EventRow.created_at)
    chosen = select(*columns).where(EventRow.step_id == step_id, EventRow.id > after)
    async with database.session() as session:
        rows = await session.execute(chosen.order_by(EventRow.id).limit(limit))
        return [Event(*row) for row in rows]


async def last_event(database: Database, step_id: str) -> Event | None:
    """The step's newest event. ServiceUnavailableError: the database is away."""
    columns = (EventRow.id, EventRow.type, EventRow.position, EventRow.data, EventRow.created_at)
    chosen = select(*columns).where(EventRow.step_id == step_id)
    async with database.session() as session:
        row = (await session.execute(chosen.order_by(EventRow.id.desc()).limit(1))).first()
        return None if row is None else Event(*row)


async def watch(database: Database, step_id: str, after: int = 0, ended: Ended | None = None) -> AsyncIterator[Event]:
    """The step's events as they come, for a process that watches one step; see :meth:`EventFeed.watch`."""
    feed = EventFeed(database)
    try:
        async with aclosing(feed.watch(step_id, after, ended)) as events:
            async for event in events:
                yield event
    finally:
        await feed.close()


class EventFeed:
    """Watches steps for many readers. One in a process; close it at the end."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: dict[str, _Watched] = {}
        self._listening: asyncio.Task[None] | None = None

    async def watch(self, step_id: str, after: int = 0, ended: Ended | None = None) -> AsyncGenerator[Event]:
        """Events with ids above ``after``, each once and in order, until the step has finished.

        While the database is away nothing comes, and it goes on where it was when it's back. ``ended`` is asked when
        nothing has come for a while: a step that ended without a word gets a ``step.finished`` with id 0.
        """
        watched = self._join(step_id, after, ended)
        try:
            while True:
                news = watched.news  # before looking: what comes from here on sets it
                events = watched.since(after)
                if events is None:
                    events = await _patiently(read_events, self._database, step_id, after)
                for event in events:
                    after = event.id
                    yield event
                if not events and watched.over:
                    if watched.end is not None:
                        yield watched.end
                    return
                if not events:
                    await news.wait()
                elif events[-1].type == FINISHED and not await _patiently(
                    read_events, self._database, step_id, after, 1
                ):
                    return  # a step that failed and was started again goes on after its first end
        finally:
            self._leave(watched)

    async def close(self) -> None:
        """Stop listening."""
        tasks = [watched.task for watched in self._watched.values() if watched.task is not None]
        tasks += [self._listening] if self._listening is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _join(self, step_id: str, after: int, ended: Ended | None) -> "_Watched":
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        watched = self._watched.get(step_id)
        if watched is None or watched.over:
            watched = self._watched[step_id] = _Watched(step_id, after, ended)
            watched.task = asyncio.create_task(watched.read(self._database))
        watched.readers += 1
        return watched

    def _leave(self, watched: "_Watched") -> None:
        watched.readers -= 1
        if watched.readers == 0:
            if self._watched.get(watched.step_id) is watched:
                del self._watched[watched.step_id]
            if watched.task is not None:
                watched.task.cancel()

    async def _listen(self) -> None:
        while True:
            try:
                connection = await self._database.connect()
                try:
                    await self._hear(connection)
                finally:
                    connection.terminate()
            except (*AWAY, TimeoutError) as error:
                logger.debug("Not listening for events: %s", error)
            await asyncio.sleep(POLL_SECONDS)

    async def _hear(self, connection: asyncpg.Connection) -> None:
        """Until the connection is gone."""
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())

        def heard(_connection: object, _pid: int, _channel: str, step_id: str) -> None:
            if step_id in self._watched:
                self._watched[step_id].wake.set()

        await connection.add_listener(CHANNEL, heard)
        for watched in self._watched.values():
            watched.wake.set()
        while not gone.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), 30)
            if not gone.is_set():
                await connection.execute("select 1", timeout=5)  # a cut cable says nothing


class _Watched:
    """A step that is watched: its newest events, kept for all its readers."""

    def __init__(self, step_id: str, after: int, ended: Ended | None) -> None:
        self.step_id = step_id
        self.readers = 0
        self.wake, self.news = asyncio.Event(), asyncio.Event()
        self.over, self.end = False, None  # type: bool, Event | None
        self.task: asyncio.Task[None] | None = None
        self._ended, self._after = ended, after
        self._asking: asyncio.Task[dict[str, Any] | None] | None = None
        self._tail: deque[Event] = deque()
        self._floor: int | None = None  # events above it, up to the last one read, are in the tail

    def since(self, after: int) -> list[Event] | None:
        """What came after; None where that isn't all kept here."""
        if self._floor is None or after < self._floor:
            return None
        newer = takewhile(lambda event: event.id > after, reversed(self._tail))
        return list(newer)[::-1]

    async def read(self, database: Database) -> None:
        """Reads what comes, for as long as anybody watches."""
        try:
            await self._read(database)
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def _read(self, database: Database) -> None:
        last = await _patiently(last_event, database, self.step_id)
        # No reader's word is taken for what there is: an id from elsewhere may be far ahead.
        upto = self._floor = min(self._after, last.id if last is not None else 0)
        heard = asyncio.get_running_loop().time()
        while True:
            self.wake.clear()
            events = await _patiently(read_events, database, self.step_id, upto)
            now = asyncio.get_running_loop().time()
            if events:
                upto, heard = events[-1].id, now
                self._keep(events)
                continue
            if self._asking is not None and self._asking.done():
                end, self._asking, heard = self._asking.result(), None, now
                if end is not None and await self._is_over(database, upto, end):
                    return
            elif self._asking is None and now - heard >= ENDED_SECONDS:
                self._asking = asyncio.create_task(self._ask())
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), POLL_SECONDS)

    def _keep(self, events: list[Event]) -> None:
        self._tail.extend(events)
        while len(self._tail) > KEEP_EVENTS:
            self._floor = self._tail.popleft().id
        self._tell()

    def _tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()

    async def _ask(self) -> dict[str, Any] | None:
        """What the step ended with; beside the reading of events, which an answer that takes long must not delay."""
        try:
            return await self._ended() if self._ended is not None else None
        except Exception as error:
            logger.debug("Nobody says whether step %s has ended: %s", self.step_id, error)
            return None
        finally:
            self.wake.set()

    async def _is_over(self, database: Database, upto: int, end: dict[str, Any]) -> bool:
        """Whether all was read that the step wrote, which it did before its end was known."""
        last = await _patiently(last_event, database, self.step_id)
        if last is not None and last.id > upto:
            return False
        if last is None or last.type != FINISHED:
            self.end = Event(0, FINISHED, None, end, datetime.now(UTC))
        self.over = True
        self._tell()
        return True


async def _patiently(read: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """What ``read`` gives, as soon as the database lets it."""
    waited = False
    while True:
        try:
            return await read(*arguments)
        except AWAY as error:
            logger.log(logging.DEBUG if waited else logging.WARNING, "Events wait for the database: %s", error)
            waited = True
        await asyncio.sleep(POLL_SECONDS)


_PRUNE = text("""
delete from events where created_at < now() - interval '30 days' or (type like '%.delta' and step_id in (
    select step_id from events ended where type = 'step.finished' and created_at < now() - interval '1 hour'
    and not exists (select from events later where later.step_id = ended.step_id and later.id > ended.id)))
""")
_TURN = text("select pg_try_advisory_xact_lock(7489271, 3)")


async def prune_events(database: Database) -> int:
    """Delete what nobody watches any more; returns how many.

    Deltas go an hour after their step has finished, since its output has them. Those of a step that waits, for days
    perhaps, stay: whoever comes back to its stream counts them. Everything goes after 30 days, also of a step that
    ended without a word. ServiceUnavailableError: the database is away.
    """
    async with database.session() as session:
        if not await session.scalar(_TURN):
            return 0  # another server is at it
        deleted = await session.execute(_PRUNE)
        return int(getattr(deleted, "rowcount", 0))
