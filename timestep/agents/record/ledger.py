"""The record of a step's units: what was begun, and what came of it. In memory, or in our database.

A step started again runs from the top, and what it did before is answered from here. In the database each of begin
and finish is one statement, which checks in the same transaction that this process still holds the step: one that
was superseded records nothing, and ends.
"""

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import asyncpg  # type: ignore[import-untyped]
from pydantic import BaseModel

from storage.references import Reference
from storage.store import ObjectStore
from timestep.agents.record.lease import Lease
from timestep.agents.record.patience import AWAY, PATIENCE, patiently
from timestep.agents.record.waiting import Kind
from timestep.database.engine import Database
from timestep.errors import ConflictError, StorageError, TimestepError, UnitChangedError

LARGE = 256 << 10  # characters of JSON above which a result is an object in storage
RETRY_SECONDS = 0.2
COMMAND_SECONDS = 30.0  # for one statement: longer, and the connection is taken for lost

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Begin:
    """A unit about to run. ``fingerprint`` is of its request, ``request`` what people may see of that, as JSON.

    ``once``: cut in the middle, it must not run again by itself. ``consume`` names the decision (its kind, the digest
    of the call it is for) that lets the call run; it is used up in the transaction that records the beginning. A
    ``once`` unit that was cut runs again only by consuming a decision of ``Kind.CUT``.
    """

    position: str
    kind: str
    name: str
    fingerprint: str
    once: bool = False
    request: Any = None
    consume: tuple[Kind, str] | None = None


class Recorded(BaseModel):
    """A unit on the record; ``result`` is JSON, None until ``finished``. ``attempt`` is the last that began it."""

    position: str
    kind: str
    name: str
    fingerprint: str
    attempt: int
    once: bool
    request: Any = None
    result: Any = None
    finished: bool = False


class Ledger(Protocol):
    """One step's units. Safe for parallel calls, which have positions of their own."""

    step_id: str

    async def begin(self, call: Begin) -> Recorded | None:
        """Record that a unit begins. None: execute it. A record: its result is the answer, execute nothing.

        Raises:
            UnitChangedError: something else was asked at this position before.
            ConflictError: the decision to consume isn't there, or was used; or the call was cut and none was made.
        """
        ...

    async def finish(self, position: str, result: Any) -> None:
        """Record a begun unit's result, any JSON."""
        ...

    def known(self, position: str) -> Recorded | None:
        """What is on record at a position: finished, or begun by this attempt or an earlier one."""
        ...

    def cut(self) -> list[Recorded]:
        """Units declared ``once`` that an earlier attempt began and did not finish, in the order of their beginning."""
        ...

    async def check(self) -> None:
        """Still ours? Otherwise this process ends."""
        ...


@dataclass
class _Units:
    """What both ledgers know by heart: the recorded units by position."""

    step_id: str
    attempt: int
    accept_changes: bool = False
    units: dict[str, Recorded] = field(default_factory=dict)

    def recorded(self, call: Begin) -> Recorded | None:
        """The finished unit that answers this call, if there is one."""
        unit = self.units.get(call.position)
        if unit is None:
            return None
        same = unit.kind == call.kind and (unit.name == call.name or unit.kind != "tool-call")
        if unit.fingerprint != call.fingerprint and not self.accept_changes:
            changed = _changed(unit.request, call.request)
            raise UnitChangedError(self.step_id, call.position, f"{unit.kind} '{unit.name}'", changed)
        if unit.finished and same:
            return unit
        again = call.consume is not None and call.consume[0] is Kind.CUT
        if unit.once and unit.attempt != self.attempt and not again:
            raise ConflictError(
                f"The call of '{unit.name}' at '{call.position}' was cut, and no one has decided what becomes of it."
            )
        return None

    def began(self, call: Begin) -> None:
        self.units[call.position] = Recorded(
            position=call.position,
            kind=call.kind,
            name=call.name,
            fingerprint=call.fingerprint,
            attempt=self.attempt,
            once=call.once,
            request=call.request,
        )

    def finished(self, position: str, result: Any) -> None:
        self.units[position] = self.units[position].model_copy(update={"result": result, "finished": True})

    def cut(self) -> list[Recorded]:
        return [u for u in self.units.values() if u.once and not u.finished and u.attempt < self.attempt]


def _changed(before: Any, now: Any) -> list[str]:
    """Names of the parts of a request that differ, where it has parts."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return []
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


class MemoryLedger:
    """A ledger that lives as long as this object: for the library, and for tests. Decisions are taken on trust."""

    def __init__(self, step_id: str = "memory") -> None:
        self.step_id = step_id
        self._known = _Units(step_id, attempt=1)

    async def begin(self, call: Begin) -> Recorded | None:
        recorded = self._known.recorded(call)
        if recorded is None:
            self._known.began(call)
        return recorded

    async def finish(self, position: str, result: Any) -> None:
        self._known.finished(position, result)

    def known(self, position: str) -> Recorded | None:
        return self._known.units.get(position)

    def cut(self) -> list[Recorded]:
        return self._known.cut()

    async def check(self) -> None:
        return


_FENCE = "select 1 from steps where id = $1 and attempt = $2 for share"
# The first progress after a crash forgives it. As an update from the start: parallel units that all held the row
# for share, and then wanted to change it, would wait for each other.
_FENCE_FORGIVING = "update steps set crashes = 0 where id = $1 and attempt = $2 returning 1"

_BEGIN = f"""
    with mine as ({_FENCE}), begun as (
        insert into units (step_id, attempt, position, kind, name, fingerprint, once, request)
        select $1, $2, $3, $4, $5, $6, $7, $8::json from mine {{where}}
        on conflict (step_id, position) do update set attempt = excluded.attempt, kind = excluded.kind,
            name = excluded.name, fingerprint = excluded.fingerprint, once = excluded.once,
            request = excluded.request, started_at = now(), result = null, result_reference = null, finished_at = null
        returning 1)
    select (select count(*) from mine) as mine, (select count(*) from begun) as done"""
_BEGIN_FREE = _BEGIN.format(where="")
# A decision already consumed counts where the record shows that this very beginning did it: it's sent again when
# the connection was lost before the answer. So does a result that a person gave: with it, nothing runs.
_BEGIN_DECIDED = _BEGIN.replace(
    "), begun as",
    """), decided as (
        update approvals set status = 'consumed', consumed_at = coalesce(consumed_at, now())
        where step_id = $1 and position = $3 and kind = $9 and digest = $10 and exists (select from mine)
        and (status = 'decided' or (status = 'consumed' and (verdict = 'result' or exists (
            select from units where step_id = $1 and position = $3 and attempt = $2))))
        returning 1), begun as""",
).format(where="where exists (select from decided)")

_FINISH = """
    with mine as ({fence}), finished as (
        update units set result = $4::json, result_reference = $5::jsonb,
            finished_at = coalesce(finished_at, clock_timestamp())
        where step_id = $1 and position = $3 and exists (select from mine)
        returning 1)
    select (select count(*) from mine) as mine, (select count(*) from finished) as done"""

_LOAD = """
    select position, kind, name, fingerprint, attempt, once, request, result, result_reference,
        finished_at is not null as finished
    from units where step_id = $1 order by started_at, position"""


class DatabaseLedger:
    """The ledger in our database, for the process that holds the step's lease.

    While the database is away, each operation is tried again for ``patience`` seconds; what was done is recorded
    however long that takes.
    """

    def __init__(self, database: Database, lease: Lease, store: ObjectStore, patience: float = PATIENCE) -> None:
        self.step_id = lease.step_id
        self._database, self._lease, self._store, self._patience = database, lease, store, patience
        self._known = _Units(lease.step_id, lease.attempt)
        self._large: dict[str, Reference] = {}
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()
        self.started = datetime.now(UTC)  # the step's first process, once loaded

    @classmethod
    async def open(
        cls, database: Database, lease: Lease, store: ObjectStore, patience: float = PATIENCE
    ) -> "DatabaseLedger":
        """Everything the step has done so far, in one query.

        Raises:
            ServiceUnavailableError: the database stayed away.
        """
        ledger = cls(database, lease, store, patience)
        await ledger._patiently(ledger._load)
        return ledger

    async def begin(self, call: Begin) -> Recorded | None:
        recorded = self._known.recorded(call)
        if recorded is not None:
            return await self._whole(recorded)
        values = [call.position, call.kind, call.name, call.fingerprint, call.once, _json(call.request)]
        sql = _BEGIN_FREE
        if call.consume is not None:
            sql = _BEGIN_DECIDED
            values += [call.consume[0].value, call.consume[1]]
        if not await self._fenced(sql, values):
            raise ConflictError(f"The decision on the call of '{call.name}' at '{call.position}' was used already.")
        self._known.began(call)
        return None

    async def finish(self, position: str, result: Any) -> None:
        elsewhere = None
        try:
            text, strange = json.dumps(result, allow_nan=False), False
        except ValueError:  # NaN and infinities, which are no JSON to the database
            text, strange = json.dumps(result), True
        if len(text) > LARGE or strange:
            elsewhere = await self._stored(text, strange)
        forgiving = self._lease.crashes > 0
        sql = _FINISH.format(fence=_FENCE_FORGIVING if forgiving else _FENCE)
        # What was done, and paid for, is not thrown away: it is tried for as long as this process lives.
        values = [position, None if elsewhere else text, elsewhere]
        if not await self._fenced(sql, values, patience=math.inf):
            raise TimestepError(f"No unit was begun at '{position}' of step '{self.step_id}'.")
        if forgiving:
            self._lease.crashes = 0
        self._known.finished(position, result)

    def known(self, position: str) -> Recorded | None:
        return self._known.units.get(position)

    def cut(self) -> list[Recorded]:
        return self._known.cut()

    async def check(self) -> None:
        await self._patiently(self._check)

    async def close(self) -> None:
        """Give the connection back. The ledger can still be used, and opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _stored(self, text: str, strange: bool) -> str | None:
        """Where a result lies, as JSON; None for beside the unit, where storage is away."""
        try:
            reference = await self._store.put_content(
                text.encode(), prefix="units", suffix=".json", content_type="application/json"
            )
        except StorageError as error:
            logger.warning("A result of step %s is kept in the database: %s", self.step_id, error)
            return json.dumps({"text": text}) if strange else None
        return reference.model_dump_json()

    async def _fenced(self, sql: str, values: list[Any], patience: float | None = None) -> bool:
        """Whether the statement found what it changes; the process ends where the step isn't ours any more."""

        async def work(connection: asyncpg.Connection) -> Any:
            return await connection.fetchrow(sql, self.step_id, self._lease.attempt, *values)

        row = await self._patiently(work, patience)
        if not row["mine"]:
            self._lease.superseded()
        return bool(row["done"])

    async def _check(self, connection: asyncpg.Connection) -> None:
        if await connection.fetchval(_FENCE, self.step_id, self._lease.attempt) is None:
            self._lease.superseded()

    async def _load(self, connection: asyncpg.Connection) -> None:
        step = await connection.fetchrow("select accept_changes, created_at from steps where id = $1", self.step_id)
        self._known.accept_changes, self.started = step["accept_changes"], step["created_at"]
        for row in await connection.fetch(_LOAD, self.step_id):
            values = dict(row)
            elsewhere = json.loads(values.pop("result_reference") or "null")
            if elsewhere is not None and "text" in elsewhere:
                values["result"] = elsewhere["text"]
            elif elsewhere is not None:
                self._large[row["position"]] = Reference.model_validate(elsewhere)
            for name in ("request", "result"):
                values[name] = None if values[name] is None else json.loads(values[name])
            self._known.units[row["position"]] = Recorded(**values)

    async def _whole(self, unit: Recorded) -> Recorded:
        """The unit with its result, fetched where it lies in storage."""
        reference = self._large.get(unit.position)
        if reference is not None and unit.result is None:
            self._known.finished(unit.position, json.loads(await self._store.get(reference)))
            self._large.pop(unit.position, None)
        return self._known.units[unit.position]

    async def _patiently(self, work: Callable[[asyncpg.Connection], Awaitable[T]], patience: float | None = None) -> T:
        """Do the work on our connection, one at a time; again while the database is away."""

        async def in_turn() -> T:
            async with self._turn:
                return await self._connected(work)

        wait = self._patience if patience is None else patience
        return await patiently(self._database, in_turn, patience=wait, pause=RETRY_SECONDS)

    async def _connected(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.connect(timeout=10, command_timeout=COMMAND_SECONDS)
        try:
            return await work(self._connection)
        except (*AWAY, asyncio.CancelledError):
            # What was under way may still be: another use of this connection would be refused.
            self._connection.terminate()
            raise


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)
