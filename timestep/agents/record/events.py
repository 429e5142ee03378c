"""What happens in a step, told live: the step's process publishes here and never waits for those who watch.

One writer per step, the process that holds its lease. It gives the ids: attempt n has n * 1,000,000,000 + 1, 2, …;
so a write whose outcome was never learnt is repeated without being doubled, and ids grow from attempt to attempt.
"""

import asyncio
import json
import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import anyio
import asyncpg  # type: ignore[import-untyped]

from timestep.agents.plain import whole
from timestep.database.engine import Database

logger = logging.getLogger(__name__)

CHANNEL = "timestep_events"
DELTAS = ("output_text.delta", "reasoning_text.delta", "tool_call.delta")
FINISHED, GAP = "step.finished", "gap"

PER_ATTEMPT = 1_000_000_000
PACE = 0.02  # seconds from one write of deltas to the next; the first leaves at once
WRITE_SECONDS = 10.0  # for one write; then its connection counts as lost
MAX_JOINED = 8_000  # characters of deltas in one event
MAX_KEPT = 1_000_000  # characters of deltas that wait for a database that is away
MAX_WRITTEN = 500  # events in one write

# The row of the lease is locked before the ids are: another attempt can't begin between the check and the insert.
_INSERT = """
with lease as (select id from steps where id = $1 and attempt = $2 for share),
added as (
    insert into events (step_id, id, type, position, data)
    select lease.id, $3 + given.number, given.type, given.position, given.data::jsonb
    from lease, unnest($4::text[], $5::text[], $6::text[]) with ordinality as given (type, position, data, number)
    on conflict do nothing
)
select pg_notify($7, id) from lease
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ``id`` grows within its step, and is 0 where a watcher made it and no step wrote it."""

    id: int
    type: str
    position: str | None
    data: dict[str, Any]
    created_at: datetime


class Events(Protocol):
    """Where a step says what happens."""

    def publish(self, type: str, position: str | None = None, **data: Any) -> None:
        """Tell it to whoever watches. Never blocks, never fails."""


class NoEvents:
    """Nobody watches: a library's run, a test."""

    def publish(self, type: str, position: str | None = None, **data: Any) -> None:
        """Nothing."""


class Holder(Protocol):
    """Who may write for a step: one attempt at it."""

    @property
    def step_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...


@dataclass(slots=True)
class _Waiting:
    """An event that is not written yet: ``json`` as it was then, or a delta to which more can be joined."""

    type: str
    position: str | None
    data: dict[str, Any]
    json: str
    delta: list[str] | None = None
    characters: int = 0

    def text(self) -> str:
        """The data as JSON."""
        return self.json if self.delta is None else _json({**self.data, "delta": "".join(self.delta)})


@dataclass(slots=True)
class _Batch:
    """Events with ids one after the other from above ``after``, as the columns of one write."""

    after: int
    types: list[str] = field(default_factory=list)
    positions: list[str | None] = field(default_factory=list)
    data: list[str] = field(default_factory=list)


class EventLog:
    """Writes the events of one attempt at a step, in order; made in the event loop that writes them.

    The first delta leaves at once; those that come while it's being written are joined and leave together. While
    the database is away they wait; above a size the oldest deltas are given up, and a ``gap`` stands in their place.
    A process that has lost its lease writes nothing more.
    """

    def __init__(self, database: Database, lease: Holder) -> None:
        self._database, self._lease = database, lease
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # tools publish from their threads
        self._waiting: deque[_Waiting] = deque()
        self._open: dict[str | None, _Waiting] = {}  # by position: the delta that can still be joined to
        self._kept = 0
        self._urgent = self._woken = self._closed = False
        self._next_write = 0.0
        self._number = lease.attempt * PER_ATTEMPT
        self._writing = False
        self._ready, self._written = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._connection: asyncpg.Connection | None = None

    def publish(self, type: str, position: str | None = None, **data: Any) -> None:
        """Put the event in line, from any thread. Never blocks, never fails."""
        if self._closed:
            return
        try:
            with self._lock:
                self._add(type, position, data)
                wake, self._woken = not self._woken, True
            if wake:
                self._loop.call_soon_threadsafe(self._wake)
        except Exception:  # not worth a step: what can't be JSON, a loop that has ended
            logger.exception("An event '%s' could not be published", type)

    async def flush(self, seconds: float = 2.0) -> bool:
        """Wait until everything published so far is written, at most so long. False: something is not."""
        with anyio.move_on_after(seconds, shield=True):
            while self._waiting or self._writing:
                self._urgent = True
                self._written.clear()
                self._wake()
                await self._written.wait()
        return not (self._waiting or self._writing)

    async def close(self, seconds: float = 2.0) -> None:
        """Write what waits, as far as that goes in this time, and let go of the connection."""
        if not await self.flush(seconds):
            logger.warning("The last events of step %s could not be written", self._lease.step_id)
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with anyio.move_on_after(1, shield=True):
                await asyncio.gather(self._task, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()

    def _add(self, type: str, position: str | None, data: dict[str, Any]) -> None:
        text = data.get("delta")
        if type not in DELTAS or not isinstance(text, str):
            self._waiting.append(_Waiting(type, position, data, _json(data)))
            # What a call says after its deltas comes after them; what the step says, after all of them.
            if position is None:
                self._open.clear()
            else:
                self._open.pop(position, None)
            self._urgent = True
            return
        del data["delta"]
        joined = self._open.get(position)
        if joined is None or (joined.type, joined.data) != (type, data) or joined.characters >= MAX_JOINED:
            joined = self._open[position] = _Waiting(type, position, data, _json(data), [])
            self._waiting.append(joined)
        assert joined.delta is not None
        joined.delta.append(text)
        joined.characters += len(text)
        self._kept += len(text)
        if self._kept > MAX_KEPT:
            self._give_up_deltas()

    def _give_up_deltas(self) -> None:
        """Half of what waits, the oldest: seldom rather than a little at every delta."""
        kept: deque[_Waiting] = deque()
        for waiting in self._waiting:
            if waiting.delta is None or self._kept <= MAX_KEPT // 2:
                kept.append(waiting)
                continue
            self._kept -= waiting.characters
            if self._open.get(waiting.position) is waiting:
                del self._open[waiting.position]
            before = kept[-1] if kept else None
            if before is None or before.type != GAP or before.position != waiting.position:
                before = _Waiting(GAP, waiting.position, {"characters": 0}, "")
                kept.append(before)
            before.data["characters"] += waiting.characters
            before.json = _json(before.data)
        self._waiting = kept

    def _wake(self) -> None:
        self._woken = False
        if self._closed:
            return
        if self._task is None:
            self._task = self._loop.create_task(self._write())
        wait = self._next_write - self._loop.time()
        if self._urgent or wait <= 0:
            self._ready.set()
        elif self._timer is None:
            self._timer = self._loop.call_later(wait, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._ready.set()

    async def _write(self) -> None:
        try:
            while not self._closed:
                await self._ready.wait()
                self._ready.clear()
                self._next_write = self._loop.time() + PACE
                while batch := self._take():
                    await self._store(batch)
                    self._writing = False
                    if not self._urgent:
                        break
                self._written.set()
                if self._waiting:
                    self._wake()
        finally:
            self._disconnect()

    def _take(self) -> _Batch | None:
        """What waits, as a batch with ids; from here on it is joined to no more."""
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_WRITTEN))]
            self._open.clear()
            self._kept -= sum(waiting.characters for waiting in taken)
            self._urgent = bool(self._waiting)
            self._writing = bool(taken)
        if not taken:
            return None
        batch = _Batch(self._number)
        self._number += len(taken)
        for waiting in taken:
            batch.types.append(waiting.type)
            batch.positions.append(waiting.position)
            batch.data.append(waiting.text())
        return batch

    async def _store(self, batch: _Batch) -> None:
        """Write it, however long the database is away; ids that are there already are left as they are."""
        wait = 0.1
        while True:
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    ours = await self._insert(batch)
                if not ours:
                    self._lose()
                return
            except Exception as error:
                if _is_refused(error):
                    logger.exception("Events of step %s were refused", self._lease.step_id)
                    return
                if wait == 0.1:
                    logger.warning("Events of step %s wait: %s", self._lease.step_id, error)
                self._disconnect()
            await asyncio.sleep(wait)
            wait = min(2 * wait, 1.0)

    async def _insert(self, batch: _Batch) -> bool:
        """False: another attempt has taken over."""
        if self._connection is None:
            # A crash of the database may cost watchers the last half second, never the step anything.
            self._connection = await self._database.connect(server_settings={"synchronous_commit": "off"})
        columns = (batch.after, batch.types, batch.positions, batch.data)
        lease = (self._lease.step_id, self._lease.attempt)
        return bool(await self._connection.fetch(_INSERT, *lease, *columns, CHANNEL))

    def _lose(self) -> None:
        logger.warning("Attempt %d at step %s has been superseded", self._lease.attempt, self._lease.step_id)
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._open.clear()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


def _is_refused(error: Exception) -> bool:
    """True where the same write would fail again: bad data, a violated constraint, a table that isn't there."""
    return isinstance(error, asyncpg.PostgresError) and str(error.sqlstate)[:2] in {"22", "23", "42"}


def _json(data: dict[str, Any]) -> str:
    """As JSON that PostgreSQL takes, which knows neither NUL nor half a surrogate pair, and no NaN."""
    text = json.dumps(data, separators=(",", ":"), default=str)
    if any(found in text for found in ("\\u0000", "\\ud", "NaN", "Infinity")):
        data = json.loads(text, parse_constant=lambda _: None)
        text = json.dumps(whole(data, nul=False), separators=(",", ":"))
    return text
