"""The lease on a step: which process, the step's *attempt*, may act for it. Taken at its start, held until it ends.

The attempt's number decides: it is checked in the transaction that records a unit, and the process that finds
another one there ends itself. The advisory lock and the heartbeat only tell others that the process lives; a thread
of its own keeps both, so that neither a busy event loop nor a tool that blocks can lose them. Where one blocks past its
timeout, that thread ends the process.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import asyncpg  # type: ignore[import-untyped]

from timestep.agents.record import identity
from timestep.agents.record.cancelling import end_cancelled
from timestep.agents.record.overdue import Overdue
from timestep.agents.record.patience import AWAY, patiently
from timestep.database.engine import Database
from timestep.errors import ServiceUnavailableError

BEAT_SECONDS = 1.0
STALE_SECONDS = 20.0  # without a heartbeat for this long, a process hangs or is cut off, whatever lock it holds
LOCK_SECONDS = 3.0  # to take the lock again after a lost connection
RESTART_SECONDS = 15.0  # after PostgreSQL's start, for processes to come back to it
TAKEOVER_SECONDS = 3.0  # a newcomer waits this long for the one before it to end
HUNG_SECONDS = 3.0  # for a process that was taken for hung to see, once woken, that it is superseded
_LOCKED = """exists (
    select from pg_locks, hashtextextended(steps.id, steps.attempt) as key
    where locktype = 'advisory' and granted and objsubid = 1
    and database = (select oid from pg_database where datname = current_database())
    and classid = ((key >> 32) & 4294967295)::oid and objid = (key & 4294967295)::oid)"""
_STANDING = f"""
    select id, attempt, crashes, holder, extract(epoch from now() - heartbeat_at)::float8 as age, {_LOCKED} as locked,
        coalesce(heartbeat_at < pg_postmaster_start_time(), false)
            and now() < pg_postmaster_start_time() + make_interval(secs => {RESTART_SECONDS}) as restarting
    from steps"""
_CHANNEL = "timestep_cancel"
# So that the server lets go of the lock soon where this machine is gone. Where there is a timeout, it counts instead of
# the count.
_LOST = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "15s",
}
_LOCK = "select pg_try_advisory_lock(hashtextextended($1, $2))"

# Replaced by tests. Not sys.exit: an exception would be reported as a crash, over the attempt that took over.
end_process: Callable[[int], NoReturn] = os._exit


@dataclass(frozen=True)
class Standing:
    """What the record says of a step's process: ``age`` is the seconds since its last heartbeat."""

    step_id: str
    attempt: int
    crashes: int
    holder: str | None
    age: float | None
    alive: bool


async def standings(connection: asyncpg.Connection, step_ids: Iterable[str]) -> dict[str, Standing]:
    """The standing of each of these steps that ever had a process."""
    rows = await connection.fetch(f"{_STANDING} where id = any($1)", list(step_ids))
    return {row["id"]: _standing(row) for row in rows}


async def alive(database: Database, step_ids: Iterable[str]) -> dict[str, bool]:
    """Whether each step has a living process now.

    Raises:
        ServiceUnavailableError: the database is away.
    """
    ids = list(step_ids)
    try:
        connection = await database.connect(timeout=10, command_timeout=30)
        try:
            found = await standings(connection, ids)
        finally:
            await connection.close()
    except AWAY as error:
        raise ServiceUnavailableError("database", database.shown) from error
    return {step_id: step_id in found and found[step_id].alive for step_id in ids}


async def ask_to_cancel(connection: asyncpg.Connection, step_id: str) -> None:
    """Have the step's process, wherever it runs, end itself as cancelled: :mod:`timestep.agents.record.cancelling`."""
    await connection.execute("select pg_notify($1, $2)", _CHANNEL, step_id)


def _standing(row: Any) -> Standing:
    return Standing(row["id"], row["attempt"], row["crashes"], row["holder"], row["age"], _is_alive(row))


def _is_alive(row: Any) -> bool:
    if row["age"] is None:
        return False
    there = identity.exists(row["holder"])
    if there is not None:  # a process of this machine: no need to judge by its connection
        return there and (row["age"] < STALE_SECONDS or row["restarting"])
    lost_lock = row["age"] >= LOCK_SECONDS and not row["locked"]
    return bool(row["restarting"] or (row["age"] < STALE_SECONDS and not lost_lock))


class Lease:
    """This process's hold on a step. ``attempt`` counts the processes that had it, from 1."""

    def __init__(self, database: Database, step_id: str, *, end_hung: bool = False) -> None:
        self.step_id = step_id
        self.holder = identity.own()
        self.attempt = 0
        self.crashes = 0
        self.on_cancel: Callable[[], None] | None = end_cancelled  # called in the lease's thread, maybe repeatedly
        self.overdue = Overdue()
        self._database = database
        self._connection: asyncpg.Connection | None = None
        self._locked = False
        self._turn = asyncio.Lock()  # the connection's: one statement at a time
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread
        self._beating: asyncio.Task[Any] | None = None
        self._pid = os.getpid()
        self._end_hung = end_hung
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def acquire(cls, database: Database, step_id: str, *, end_hung: bool = False) -> "Lease":
        """Become the step's next attempt; asked again in the same process, the same lease.

        Where the attempt before it lives, this process ends instead: the step is in good hands.

        Args:
            database: Ours.
            step_id: Id of the flow run.
            end_hung: End the process of the attempt before it, where that hangs on this machine: it may hold what
                others wait for. For flow runs, whose processes do nothing else.

        Raises:
            ServiceUnavailableError: the database stayed away for two minutes.
        """
        lease = cls.held(step_id)
        if lease is None:
            lease = _leases[step_id] = cls(database, step_id, end_hung=end_hung)
            taken: Future[None] = Future()
            lease._thread = threading.Thread(target=lease._live, args=[taken], name=f"lease {step_id}", daemon=True)
            lease._thread.start()
            try:
                await asyncio.wrap_future(taken)
            except BaseException:
                _leases.pop(step_id, None)
                raise
        return lease

    @staticmethod
    def held(step_id: str) -> "Lease | None":
        """The lease that this process has on the step."""
        lease = _leases.get(step_id)
        return lease if lease is not None and lease._pid == os.getpid() else None

    async def check(self) -> None:
        """Ends the process if another attempt has taken over.

        Raises:
            ServiceUnavailableError: the database stayed away for two minutes.
        """
        await self._on_thread(self._beat)

    async def release(self) -> None:
        """Say that the next attempt need not wait for this process's end: it does no more work for the step."""
        await self._on_thread(self._resign)

    async def close(self) -> None:
        """Let go of the step before the process ends: for processes that do other things afterwards, such as tests."""
        _leases.pop(self.step_id, None)
        assert self._loop is not None, "a lease is acquired before it is closed"
        if self._thread.is_alive() and self._beating is not None:
            self._loop.call_soon_threadsafe(self._beating.cancel)
            await asyncio.to_thread(self._thread.join)

    async def progressed(self) -> None:
        """Forgive the crashes so far: for work that goes on without units."""
        if self.crashes:
            await self._on_thread(self._forgive)
            self.crashes = 0

    def superseded(self) -> NoReturn:
        """Another attempt acts for the step: end, with one line in the log and nothing to Prefect."""
        self._end_process(0, f"attempt {self.attempt} was superseded")

    def _end_process(self, code: int, why: str) -> NoReturn:
        with suppress(OSError, ValueError):  # a closed standard error must not keep it alive
            os.write(2, f"Step '{self.step_id}': {why}; this process ends.\n".encode())
        end_process(code)

    async def _on_thread(self, work: Callable[[], Awaitable[None]]) -> None:
        assert self._loop is not None, "a lease is acquired before it is used"
        # Shielded: a caller that gives up cuts no statement on the connection that the lock hangs on.
        await asyncio.shield(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._patiently(work), self._loop)))

    # From here on, all is within the lease's own thread.

    def _live(self, taken: "Future[None]") -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._hold(taken))

    async def _hold(self, taken: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._beating = asyncio.current_task()
        try:
            await self._patiently(self._take)
        except BaseException as error:
            taken.set_exception(error)
            return
        taken.set_result(None)
        try:
            while True:
                await asyncio.sleep(BEAT_SECONDS)
                if late := self.overdue.look():
                    self._end_process(1, f"{late} blocks it past its timeout")
                await self._try_to_beat()
        finally:
            self._disconnect()

    async def _try_to_beat(self) -> None:
        async with self._turn:
            try:
                await self._beat()
            except AWAY:
                self._disconnect()
            except Exception:
                # The thread is the process's only sign of life: whatever this is, the next beat may do.
                logging.getLogger(__name__).exception("A heartbeat failed")
                self._disconnect()

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        async def in_turn() -> None:
            async with self._turn:
                await self._connected(work)

        def is_away(error: Exception) -> bool:  # InterfaceError comes from a transaction on a lost connection
            return isinstance(error, (*AWAY, asyncpg.InterfaceError))

        await patiently(self._database, in_turn, pause=BEAT_SECONDS / 4, is_away=is_away)

    async def _connected(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except BaseException:
            self._disconnect()
            raise

    async def _take(self) -> None:
        connection = await self._connect()
        await connection.execute("insert into steps (id) values ($1) on conflict do nothing", self.step_id)
        deadline = asyncio.get_running_loop().time() + TAKEOVER_SECONDS
        while not await self._take_over(connection):
            if asyncio.get_running_loop().time() > deadline:
                self.superseded()
            await asyncio.sleep(0.1)

    async def _take_over(self, connection: asyncpg.Connection) -> bool:
        async with connection.transaction():
            row = await connection.fetchrow(f"{_STANDING} where id = $1 for update", self.step_id)
            # Without a holder: it released the step, or this is the first.
            if row["holder"] is not None and row["holder"] != self.holder and _is_alive(row):
                return False
            attempt = row["attempt"] + 1
            # Before the commit, so that the new attempt is never seen without its lock.
            self._locked = await connection.fetchval(_LOCK, self.step_id, attempt)
            await connection.execute(
                "update steps set attempt = $2, holder = $3, heartbeat_at = now() where id = $1",
                self.step_id,
                attempt,
                self.holder,
            )
        self.attempt, self.crashes = attempt, row["crashes"]
        if self._end_hung and row["holder"] != self.holder and identity.exists(row["holder"]):
            self._ending = asyncio.create_task(self._end(row["holder"]))
        return True

    async def _end(self, holder: str) -> None:
        # Woken, it ends by itself as superseded, without a word to its worker; killed, it would be called crashed.
        identity.send(holder, signal.SIGCONT)
        until = asyncio.get_running_loop().time() + HUNG_SECONDS
        while identity.exists(holder) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.1)
        identity.send(holder, signal.SIGKILL)

    async def _beat(self) -> None:
        connection = await self._connect()
        if not self._locked:
            self._locked = await connection.fetchval(_LOCK, self.step_id, self.attempt)
        done = await connection.execute(
            "update steps set heartbeat_at = now() where id = $1 and attempt = $2", self.step_id, self.attempt
        )
        if done == "UPDATE 0":
            self.superseded()

    async def _resign(self) -> None:
        connection = await self._connect()
        await connection.execute(
            "update steps set holder = null where id = $1 and attempt = $2", self.step_id, self.attempt
        )

    async def _forgive(self) -> None:
        connection = await self._connect()
        await connection.execute(
            "update steps set crashes = 0 where id = $1 and attempt = $2", self.step_id, self.attempt
        )

    async def _connect(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._locked = False
            self._connection = await self._database.connect(command_timeout=5, timeout=5, server_settings=_LOST)
            await self._connection.add_listener(_CHANNEL, self._told)
        return self._connection

    def _told(self, _connection: Any, _pid: int, _channel: str, step_id: str) -> None:
        if step_id == self.step_id and self.on_cancel is not None:
            self.on_cancel()

    def _disconnect(self) -> None:
        connection, self._connection, self._locked = self._connection, None, False
        if connection is not None:
            connection.terminate()


def unblocked(step_id: str, seconds: float | None, what: str) -> AbstractContextManager[None]:
    """Within is a call with a timeout. If it blocks the event loop past that, the process ends, as crashed.

    Only a process that holds the step's lease: it is for the step alone, and is started again.
    """
    lease = Lease.held(step_id)
    return nullcontext() if lease is None or seconds is None else lease.overdue.after(seconds, what)


_leases: dict[str, Lease] = {}
