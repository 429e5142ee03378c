"""The repair loop: finds flow runs whose process died, and has the service start them again.

Prefect alone leaves a killed run as it was. Here the lease of each run tells whether its process lives; what is done
about one that doesn't is a change of the run's state, which the worker then follows. Any number of loops may run:
each change is made under a lock, after another look.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed, Failed, Running, Scheduled

from timestep import runs
from timestep.agents.record.lease import Standing, alive, ask_to_cancel, standings
from timestep.agents.record.patience import AWAY
from timestep.agents.record.sessions import repair_queues
from timestep.database.engine import Database
from timestep.settings import Settings

logger = logging.getLogger(__name__)

FLOWS = ("step", "batch")  # flows and deployments have the same names
WATCHED = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.CRASHED)
PASS_SECONDS, SOON_SECONDS = 1.0, 0.25  # between passes; where something is about to be due
QUEUE_PASSES = 3  # the sessions' queues are looked at every so many passes
PAGE = 200  # most that Prefect's API returns at once
REQUEST_SECONDS = 10.0
STUCK_SECONDS = 10.0  # for which a run is left alone whose state can't be changed; the others have their turns

# Says who has a run. Our own worker, `deployments.warm`, can start it again at once.
WORKER_TYPE_LABEL, WARM_WORKER = "prefect.worker.type", "timestep-process"
# Prefect's own process worker is done with a crash after about 3 s: it reports it once more, and ends itself should
# it meet the run again before. Workers that make containers may need minutes to start one.
STOCK_GRACE_SECONDS, STOCK_PENDING_SECONDS = 5.0, 600.0
STARTING_SECONDS = 15.0  # from Running until a process has its lease
PENDING_SECONDS = 30.0  # from Pending until a process runs; a false alarm starts a second one, which ends by itself
LIVING_SECONDS = 3.0  # a process that lives this long after its run was called crashed did not crash
LONGEST_PAUSE = 30.0  # from a crash to the new start; whoever waits for a run gives it `runs.REVIVE_SECONDS`
CANCEL_SECONDS = 4.0  # until a cancelled run whose process is gone is said to be cancelled, by its worker first
ASK_SECONDS = 1.0  # until a cancelled run's process is told so, should its worker not have done it


class Action(StrEnum):
    """What is done about a run."""

    CRASH = "crashed: its process is gone"
    REVIVE = "to be started again"
    RESUBMIT = "to be started again: no process came of it"
    RESTORE = "running: its process lives"
    GIVE_UP = "given up: it crashed too often"
    CANCEL = "cancelled: its process is gone"
    ASK = "its process is told that it is cancelled"


@dataclass(frozen=True)
class Judge:
    """The rules, without a clock or a server: crashes in a row that are too many, seconds that a worker needs."""

    limit: int
    grace: float
    pending: float = PENDING_SECONDS

    @classmethod
    def of(cls, run: FlowRun, settings: Settings) -> "Judge":
        """The rules for a run, which depend on the kind of worker that has it."""
        if run.labels.get(WORKER_TYPE_LABEL) == WARM_WORKER:
            return cls(settings.crash_limit, settings.crash_grace)
        # Without a label, a worker took the run and died before it began to submit it.
        pending = STOCK_PENDING_SECONDS if WORKER_TYPE_LABEL in run.labels else PENDING_SECONDS
        return cls(settings.crash_limit, max(settings.crash_grace, STOCK_GRACE_SECONDS), pending)

    def action(self, state: StateType, age: float, standing: Standing | None) -> Action | None:
        """What a run needs that came into this state ``age`` seconds ago."""
        living = standing is not None and standing.alive
        match state:
            case StateType.RUNNING:
                return None if living or self._may_be_starting(age, standing) else Action.CRASH
            case StateType.PENDING:
                return None if living or age < self.pending else Action.RESUBMIT
            case StateType.CANCELLING if living:
                return Action.ASK if age > ASK_SECONDS else None
            case StateType.CANCELLING:
                patience = STARTING_SECONDS if standing is None else CANCEL_SECONDS
                return Action.CANCEL if age > patience else None
            case StateType.CRASHED if living:
                return Action.RESTORE if age > LIVING_SECONDS else None
            case StateType.CRASHED if _crashes(standing) + 1 >= self.limit:
                return Action.GIVE_UP
            case StateType.CRASHED if age > self.pause(standing):
                return Action.REVIVE
        return None

    def pause(self, standing: Standing | None) -> float:
        """Seconds from a crash to the new start: longer each time, up to a limit, should it be of no use."""
        doubled = self.grace * 2.0 ** min(_crashes(standing), 16)
        return min(doubled, max(self.grace, LONGEST_PAUSE))

    def _may_be_starting(self, age: float, standing: Standing | None) -> bool:
        """Whether the process that made the run Running has not come to its lease yet."""
        had_its_lease = standing is not None and standing.age is not None and standing.age < age
        return not had_its_lease and age < STARTING_SECONDS


def _crashes(standing: Standing | None) -> int:
    return 0 if standing is None else standing.crashes


class Repair:
    """One loop's look at the runs, and what it does about them."""

    def __init__(self, settings: Settings, database: Database, client: PrefectClient) -> None:
        self._settings, self._database, self._client = settings, database, client
        self._connection: asyncpg.Connection | None = None
        self._passes = 0
        self._stuck: dict[UUID, float] = {}  # until when
        self.soon = False

    async def pass_once(self) -> dict[UUID, Action]:
        """Look at every run once; returns what was done."""
        self._passes += 1
        connection = await self._connected()
        done: dict[UUID, Action] = {}
        found = await self._runs()
        known = await standings(connection, [str(run.id) for run in found])
        for run in found:
            action = self._needed(run, known.get(str(run.id)))
            if action is not None and await self._tried(connection, run, action):
                done[run.id] = action
        # A crash is soon to be followed by a new start.
        self.soon = any(run.state_type is StateType.CRASHED for run in found) or Action.CRASH in done.values()
        if self._passes % QUEUE_PASSES == 0:
            await repair_queues(self._client, self._database, self._wake)
        return done

    async def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.terminate()

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.connect(timeout=5, command_timeout=30)
        return self._connection

    async def _runs(self) -> list[FlowRun]:
        """The flow runs of our deployments that could need something."""
        found: list[FlowRun] = []
        while len(found) % PAGE == 0:
            page = await self._client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=list(FLOWS))),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(WATCHED)))
                ),
                limit=PAGE,
                offset=len(found),
            )
            found += page
            if not page:
                break
        return found

    def _needed(self, run: FlowRun, standing: Standing | None) -> Action | None:
        if run.state is None:
            return None
        age = (datetime.now(UTC) - run.state.timestamp).total_seconds()
        return Judge.of(run, self._settings).action(run.state.type, age, standing)

    async def _tried(self, connection: asyncpg.Connection, run: FlowRun, action: Action) -> bool:
        """Do it, and leave a run for others where Prefect can't: its row may be held by a server that is gone."""
        if self._stuck.get(run.id, 0) > time.monotonic():
            return False
        try:
            return await self._act(connection, run, action)
        except (httpx.TimeoutException, httpx.HTTPStatusError) as error:
            why = str(error) or type(error).__name__
            logger.warning("Run '%s' can't be changed now, though it is %s (%s)", run.id, action, why)
            self._stuck = {one: until for one, until in self._stuck.items() if until > time.monotonic()}
            self._stuck[run.id] = time.monotonic() + STUCK_SECONDS
            return False

    async def _act(self, connection: asyncpg.Connection, run: FlowRun, action: Action) -> bool:
        """Do it, unless another loop is about to, or the run is not any more what it was."""
        step_id = str(run.id)
        if action is Action.ASK:
            await ask_to_cancel(connection, step_id)
            return True
        async with connection.transaction():
            if not await connection.fetchval(
                "select pg_try_advisory_xact_lock(hashtextextended('repair ' || $1, 0))", step_id
            ):
                return False
            try:
                now = await self._client.read_flow_run(run.id)
            except ObjectNotFound:
                return False
            standing = (await standings(connection, [step_id])).get(step_id)
            if now.state is None or run.state is None or now.state.id != run.state.id:
                return False
            if self._needed(now, standing) is not action:
                return False
            if now.state.is_crashed() and await self._was_cancelled(run.id):
                if action is Action.RESTORE:
                    await runs.cancel(self._client, run.id, self._lives)
                    return True
                action = Action.CANCEL
            await self._count(connection, step_id, action)
            if action is Action.CANCEL:
                # Before the run itself, so that it is tried again should it fail: a batch has steps under way.
                await runs.cancel_started(self._client, run.id, self._lives)
            state = self._state(action, now, standing)
            result = await self._client.set_flow_run_state(run.id, state)
        logger.info("Run '%s' (%s): %s.%s", run.id, now.name, action, "" if result.state else " Refused.")
        return True

    async def _was_cancelled(self, run_id: UUID) -> bool:
        """Whether a crashed run was to be cancelled when it crashed: since it was last started, that is."""
        states = await self._client.read_flow_run_states(run_id)
        for state in sorted(states, key=lambda state: state.timestamp, reverse=True):
            if state.is_cancelling() or state.is_cancelled():
                return True
            if state.is_scheduled():
                return False
        return False

    async def _count(self, connection: asyncpg.Connection, step_id: str, action: Action) -> None:
        if action in (Action.REVIVE, Action.RESUBMIT):
            await connection.execute(
                "insert into steps (id, crashes) values ($1, $2) "
                "on conflict (id) do update set crashes = steps.crashes + $2",
                step_id,
                int(action is Action.REVIVE),
            )
        elif action is Action.GIVE_UP:  # a person who starts it again gets as many attempts anew
            await connection.execute("update steps set crashes = 0 where id = $1", step_id)

    def _state(self, action: Action, run: FlowRun, standing: Standing | None) -> State[None]:
        crashes, limit = _crashes(standing) + 1, self._settings.crash_limit
        said = ((run.state and run.state.message) or "Its process died.").partition(". ")[0].rstrip(".") + "."
        match action:
            case Action.CRASH:
                return Crashed(message="The process of this run died without a word, or hangs.")
            case Action.REVIVE:
                return Scheduled(message=f"Started again by the service (crash {crashes} of at most {limit}): {said}")
            case Action.RESUBMIT:
                return Scheduled(message="Started again by the service: no process came of the start before.")
            case Action.RESTORE:
                return Running(message="Its process lives: it was called crashed too early.")
            case Action.CANCEL:
                return Cancelled(message="Flow run was cancelled.")
        return Failed(
            name="CrashLimit",
            message=f"Crashed {crashes} times in a row without finishing a model or tool call in between. "
            f"The last time: {said} Its log says more. Start it again: timestep resume {run.id}",
        )

    async def _lives(self, run_id: UUID) -> bool:
        return (await alive(self._database, [str(run_id)]))[str(run_id)]

    async def _wake(self, step_id: str) -> None:
        await runs.resume(self._client, UUID(step_id))


async def repair_loop(settings: Settings, database: Database, stop: asyncio.Event) -> None:
    """Repair until ``stop`` is set. An outage of Prefect's server or of the database is said once, and waited for."""
    stopped = asyncio.ensure_future(stop.wait())
    # The client must not wait and retry by itself: what it would do then may be wrong by that time.
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        options = {"timeout": REQUEST_SECONDS}
        async with PrefectClient(
            settings.prefect_api, auth_string=settings.prefect_login, httpx_settings=options
        ) as client:
            repair = Repair(settings, database, client)
            try:
                await _until(stopped, repair.pass_once, lambda: SOON_SECONDS if repair.soon else PASS_SECONDS)
            finally:
                stopped.cancel()
                await repair.close()


async def _until(
    stopped: asyncio.Future[Any], work: Callable[[], Awaitable[object]], pause: Callable[[], float]
) -> None:
    trouble = ""
    while not stopped.done():
        seconds = PASS_SECONDS
        try:
            await work()
            seconds, trouble = pause(), ""
        except Exception as error:
            away = isinstance(error, (*AWAY, httpx.HTTPError, asyncpg.InterfaceError))
            if str(type(error)) != trouble:
                why = str(error) or type(error).__name__
                logger.warning("Runs can't be looked after now: %s", why, exc_info=not away)
            trouble = str(type(error))
        await asyncio.wait([stopped], timeout=seconds)
