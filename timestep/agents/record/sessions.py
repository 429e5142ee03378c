"""Conversations over steps: the items of the SDK's own ``SQLAlchemySession``, and the queue that orders the steps.

Two steps of one session never interleave. Each takes a place in the session's queue when it starts; the head
reads the history, runs, adds its items and leaves. What becomes of those behind it is in :class:`SessionTurn`.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from agents.extensions.memory import SQLAlchemySession
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from timestep.agents.record.lease import alive
from timestep.agents.record.ledger import Begin, Ledger
from timestep.agents.record.patience import AWAY, patiently
from timestep.agents.record.units import fingerprint, unit
from timestep.database.engine import Database
from timestep.errors import TimestepError, UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Wake = Callable[[str], Awaitable[None]]

TURN = "turn-"  # begins the key of a suspension until the step's turn
POLL_SECONDS = 0.5
RETRY_SECONDS = 0.5
STATEMENT_SECONDS = 30.0
PAGE = 200  # most runs that Prefect's API returns at once

# Held while a place is taken, so that numbers grow in the order of commits: nobody finds itself first who isn't.
_ONE_BY_ONE = text("select pg_advisory_xact_lock(7489272, hashtext(:session_id))")
# A step that was killed after it had added its items has nothing left to wait for.
_JOIN = text(
    """
    insert into turns (step_id, session_id) select cast(:step_id as text), :session_id where not exists (
      select from units where step_id = cast(:step_id as text) and position = 'session/add' and finished_at is not null)
    on conflict (step_id) do nothing
    """
)
_LEAVE = text("delete from turns where step_id = :step_id")
_HEADS = text(
    """
    select distinct on (session_id) step_id, session_id,
      exists (select from approvals where approvals.step_id = turns.step_id and status = 'pending') as waits
    from turns where cast(:session_id as text) is null or session_id = :session_id
    order by session_id, number
    """
)
_SESSION_OF = text("select session_id from turns where step_id = :step_id")
# One statement, which adds the items and finishes the unit, or does neither: run again, nothing is doubled, and what
# equals something else in the session is added all the same. Not several in a transaction: a process stopped between
# them would hold the step's row against its successor.
_ADD = """
    with mine as (
        select from steps where id = $1 and attempt = $2 for share
    ), finished as (
        update units set result = $5::json, finished_at = clock_timestamp()
        where step_id = $1 and position = $3 and attempt = $2 and finished_at is null and exists (select from mine)
        returning 1
    ), session as (
        insert into agent_sessions (session_id) select $4 where exists (select from finished)
        on conflict (session_id) do update set updated_at = current_timestamp
        returning session_id
    ), added as (
        insert into agent_messages (session_id, message_data)
        select session_id, item from session, unnest($6::text[]) with ordinality as items (item, number) order by number
    )
    select exists (select from mine)"""
_TABLES_EXIST = text("select to_regclass('agent_messages') is not null")
_MAKE_TABLES = text("select pg_advisory_xact_lock(7489271, 2)")


class NotYourTurnError(TimestepError):
    """An earlier step of the session isn't done, and this one should not hold a worker until it is.

    The flow suspends, without asking anybody; it is resumed when its turn has come, and runs from its top.
    """

    def __init__(self, step_id: str, session_id: str, ahead: str) -> None:
        super().__init__(f"Step '{step_id}' waits for step '{ahead}' of session '{session_id}'.")
        self.step_id, self.session_id, self.ahead = step_id, session_id, ahead


class Head(BaseModel):
    """The first step in a session's queue, and whether that ``waits`` for a person."""

    step_id: str
    session_id: str
    waits: bool


class SessionTurn:
    """A step's turn in its session: an async context, which is entered when the turn has come.

    Entering waits for the step ahead while that one runs, at most ``patience`` seconds, for a worker has few
    places. Then, and at once where the step ahead waits for a person or its process is gone, it raises
    :class:`NotYourTurnError`. The step keeps its place, and goes on waiting there when it is entered again.

    Leaving by a return or by an ``Exception`` gives the place up, and ``wake`` gets the id of the step that is
    first now, which may be suspended. Leaving by a suspension, or when cancelled, keeps it: a step that waits for a
    person holds up its session. :func:`leave` is for whoever finds that such a run has ended.

    Without a ``session_id``, or with an empty one, all of this is nothing, and the history empty.

    Raises:
        UsageError: a session, and no database.
        NotYourTurnError: on entering; see above.
    """

    def __init__(
        self,
        database: Database | None,
        session_id: str | None,
        ledger: Ledger,
        *,
        wake: Wake | None = None,
        patience: float = 15.0,
    ) -> None:
        # An empty id is what a form sends whose field was left empty. It names no session that all of those share.
        if session_id and database is None:
            raise UsageError("A session needs the service's database. Start the service: timestep up")
        self._database = database if session_id else None
        self._session_id, self._ledger = session_id or "", ledger
        self._wake, self._patience = wake, patience
        self._session: SQLAlchemySession | None = None

    async def __aenter__(self) -> Self:
        if self._database is not None:
            await join(self._database, self._session_id, self._ledger.step_id)
            await self._wait(self._database)
            self._session = await open_session(self._database, self._session_id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        ended = error is None or isinstance(error, Exception)
        if self._database is None or not ended:
            return
        await self._ledger.check()  # a superseded process must not give up the place of its successor
        try:
            following = await leave(self._database, self._ledger.step_id)
            if following is not None and self._wake is not None:
                await self._wake(following)
        except Exception as failure:
            # The step's own outcome stands. The repair loop finds the place of a run that has ended.
            logger.warning("Step '%s' could not hand its session on: %s", self._ledger.step_id, failure)

    async def history(self) -> list[Any]:
        """Items of the session before this step, as a unit: the same ones when the step runs again."""
        session, database = self._session, self._database
        if session is None or database is None:
            return []

        async def call() -> Any:
            return [dict(item) for item in await _patiently(database, session.get_items)]

        return list(await unit(self._ledger, self._unit("read"), call))

    async def add(self, items: list[Any]) -> None:
        """Append the items, as a unit: once, whenever the process is killed, and not at all by a superseded one."""
        database = self._database
        if database is None:
            return

        async def call() -> Any:
            await _patiently(database, lambda: self._append(database, items))
            return len(items)

        await unit(self._ledger, self._unit("add"), call)

    async def _append(self, database: Database, items: list[Any]) -> None:
        position = self._unit("add").position
        begun = self._ledger.known(position)
        written = [json.dumps(item, default=str, separators=(",", ":")) for item in items]
        values = [self._ledger.step_id, begun and begun.attempt, position, self._session_id, str(len(items)), written]
        connection = await database.connect(timeout=10, command_timeout=STATEMENT_SECONDS)
        try:
            mine = await connection.fetchval(_ADD, *values)
        finally:
            connection.terminate()
        if not mine:
            await self._ledger.check()  # which ends a superseded process
            raise TimestepError(f"Step '{self._ledger.step_id}' has no lease, and may not add to its session.")

    def _unit(self, name: str) -> Begin:
        of = fingerprint({"session": self._session_id})
        return Begin(position=f"session/{name}", kind="tool-call", name=f"session: {name}", fingerprint=of)

    async def _wait(self, database: Database) -> None:
        """Until this step is the head, or has no place in the queue (it is done with the session)."""
        step_id, until = self._ledger.step_id, time.monotonic() + self._patience
        while True:
            head = await first(database, step_id)
            if head is None or head.step_id == step_id:
                return
            if head.waits or time.monotonic() > until or not (await alive(database, [head.step_id]))[head.step_id]:
                raise NotYourTurnError(step_id, self._session_id, head.step_id)
            await asyncio.sleep(POLL_SECONDS)


async def open_session(database: Database, session_id: str) -> SQLAlchemySession:
    """The session of that id in our database. The SDK's tables are made on first use, by one process at a time.

    Raises:
        ServiceUnavailableError: the database can't be reached.
    """
    session = SQLAlchemySession(session_id, engine=database.engine, create_tables=True)

    async def make_tables() -> None:
        async with database.session() as turn:
            if not await turn.scalar(_TABLES_EXIST):
                await turn.execute(_MAKE_TABLES)
                await session.get_items(limit=1)

    await _patiently(database, make_tables)
    return session


async def join(database: Database, session_id: str, step_id: str) -> None:
    """Takes a place at the end of the session's queue. Again keeps the place."""

    async def work() -> None:
        async with database.session() as session:
            await session.execute(_ONE_BY_ONE, {"session_id": session_id})
            await session.execute(_JOIN, {"session_id": session_id, "step_id": step_id})

    await _patiently(database, work)


async def leave(database: Database, step_id: str) -> str | None:
    """Gives the step's place up; id of the step that is first in its session now. Safe to repeat."""
    async with database.session() as session:
        session_id = await session.scalar(_SESSION_OF, {"step_id": step_id})
        await session.execute(_LEAVE, {"step_id": step_id})
    return None if session_id is None else await next_in_line(database, session_id)


async def next_in_line(database: Database, session_id: str) -> str | None:
    """Id of the step that is first in the session's queue."""
    found = await heads(database, session_id)
    return found[0].step_id if found else None


async def first(database: Database, step_id: str) -> Head | None:
    """Who is first in the queue that this step stands in; None where it stands in none."""

    async def work() -> Head | None:
        async with database.session() as session:
            session_id = await session.scalar(_SESSION_OF, {"step_id": step_id})
        found = [] if session_id is None else await heads(database, session_id)
        return found[0] if found else None

    return await _patiently(database, work)


async def heads(database: Database, session_id: str | None = None) -> list[Head]:
    """The first step of every session's queue, or of one's."""
    async with database.session() as session:
        rows = await session.execute(_HEADS, {"session_id": session_id})
        return [Head.model_validate(dict(row)) for row in rows.mappings()]


async def repair_queues(client: PrefectClient, database: Database, wake: Wake) -> list[str]:
    """Let the queues go on where a process could not: for the repair loop, safe to do by several at once.

    A head whose run has ended for good, or is gone, gives its place up; a head that is suspended until its turn is
    woken. Returns the steps that were woken.
    """
    woken: list[str] = []
    found = await heads(database)
    while found:
        states = await _states(client, [head.step_id for head in found])
        over = [head for head in found if head.step_id not in states or _is_over(states[head.step_id])]
        for head in found:
            if head not in over and _awaits_turn(states[head.step_id]):
                await wake(head.step_id)
                woken.append(head.step_id)
        # Whoever is first now, where somebody left.
        following = [await leave(database, head.step_id) for head in over]
        left = {head.session_id for head in over}
        found = [head for head in await heads(database) if head.session_id in left] if any(following) else []
    return woken


async def _states(client: PrefectClient, step_ids: list[str]) -> dict[str, State[Any] | None]:
    """The states of these runs, without those that are gone: what a list lacks is asked for by itself."""
    states: dict[str, State[Any] | None] = {}
    for at in range(0, len(step_ids), PAGE):
        asked = step_ids[at : at + PAGE]
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(step_id) for step_id in asked]))
        listed = {str(run.id): run.state for run in await client.read_flow_runs(flow_run_filter=chosen, limit=PAGE)}
        for step_id in set(asked) - set(listed):
            with suppress(ObjectNotFound):
                listed[step_id] = (await client.read_flow_run(UUID(step_id))).state
        states |= listed
    return states


def _is_over(state: State[Any] | None) -> bool:
    """Crashed is not: the service starts that again."""
    return state is not None and (state.is_completed() or state.is_failed() or state.is_cancelled())


def _awaits_turn(state: State[Any] | None) -> bool:
    return state is not None and state.is_paused() and (state.state_details.pause_key or "").startswith(TURN)


async def _patiently(database: Database, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work; again while the database is away, by SQLAlchemy's account as well."""
    return await patiently(database, work, pause=RETRY_SECONDS, is_away=_is_away)


def _is_away(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        return bool(error.connection_invalidated) or isinstance(error.orig, AWAY)
    return isinstance(error, AWAY)
