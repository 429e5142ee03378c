"""How a flow run waits for people, or for its turn: suspended, without a process, for as long as it takes.

The table of decisions is what counts. A submitted form is only a way into it: whatever process comes first after the
submission reads it, and it counts unless somebody had decided otherwise before.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn, TypeVar
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.flow_runs import asuspend_flow_run

from flows.forms import Form, form, submitted
from timestep import runs
from timestep.agents.record.approvals import Approvals
from timestep.agents.record.away import prefect_reached
from timestep.agents.record.lease import Lease
from timestep.agents.record.patience import PATIENCE
from timestep.agents.record.sessions import next_in_line
from timestep.agents.record.waiting import Decision, PendingCall, Verdict
from timestep.database.engine import Database
from timestep.errors import ConflictError, NotFoundError, ServiceUnavailableError, TimestepError, UsageError

logger = logging.getLogger(__name__)

FORM = "the form in the Prefect UI"  # who decided, where Prefect doesn't say it
NOT_RUNNING_SECONDS = 30.0  # a run that was wrongly called crashed is called running again within seconds

# In which a run comes to rest before it is started again: by its end, a crash, or a wait for people.
STOPS = (StateType.FAILED, StateType.CANCELLED, StateType.CRASHED, StateType.PAUSED)

T = TypeVar("T")


class People:
    """Asks people for the decisions on a step's calls, and suspends its run until they are there."""

    def __init__(
        self, database: Database, lease: Lease, deadline: timedelta | None = None, default: Verdict = Verdict.REJECT
    ) -> None:
        self._approvals = Approvals(database, lease.step_id, lease)
        self._lease, self._deadline, self._default = lease, deadline, default
        self._prepared = False

    async def decisions(self, calls: list[PendingCall]) -> dict[str, Decision]:
        """What people have decided of these calls, by position; the others are asked for from now on."""
        if not self._prepared:
            # Once is enough: no form can be submitted while this process runs. And before anything is asked anew,
            # so that a form never answers what was asked after it.
            await _patiently(self._forget_failures)
            await _patiently(self._read_forms)
            self._prepared = True
        await _patiently(lambda: self._approvals.ask(calls, self._deadline, self._default))
        return await _patiently(lambda: self._approvals.decisions(calls))

    async def suspend(self, calls: list[PendingCall]) -> NoReturn:
        """Suspend the flow run with a form for these calls, by Prefect's exception that ends the process.

        Raises:
            UsageError: a run that can't be suspended: one of no deployment, or within another.
        """
        _check_possible(calls)
        key = f"people-{self._lease.attempt}"
        made = form(calls)
        with prefect_reached():
            await made.save_with(calls, key)

        async def decided(client: PrefectClient) -> bool:
            return not await self._approvals.pending()

        await _suspend(self._lease, key, made, decided)

    async def _forget_failures(self) -> None:
        """A decision to fail counts until it has failed the step, however many processes that takes, and no longer."""
        if not await self._approvals.failing():
            return
        async with get_client() as client:
            states = await client.read_flow_run_states(UUID(self._lease.step_id))
        stops = [state for state in states if state.type in STOPS]
        last = max(stops, key=lambda state: state.timestamp, default=None)
        if last is not None and last.type in (StateType.FAILED, StateType.CANCELLED):
            await self._approvals.failed()

    async def _read_forms(self) -> None:
        async with get_client() as client:
            run_id = UUID(self._lease.step_id)
            for answer in await submitted(client, run_id):
                for call, decision in answer.decisions:
                    try:
                        await self._approvals.decide(call, decision, by=FORM)
                    except (ConflictError, NotFoundError, UsageError) as error:
                        logger.warning("What the form said of call '%s' doesn't count: %s", call.call_id, error)
                # Or it would decide once more where the same call has to be asked for a second time.
                await client.delete_flow_run_input(run_id, answer.key)

    async def wake(self, step_id: str) -> None:
        """Let another step go on, which was suspended until its turn."""
        async with get_client() as client:
            await runs.resume(client, UUID(step_id))


async def suspend_until_turn(database: Database, lease: Lease, session_id: str) -> NoReturn:
    """Suspend the flow run until the steps before it in its session are done, by Prefect's exception."""

    async def has_come(client: PrefectClient) -> bool:
        return await next_in_line(database, session_id) == lease.step_id

    await _suspend(lease, f"turn-{lease.attempt}", None, has_come)


async def _suspend(
    lease: Lease, key: str, made: type[Form] | None, over: Callable[[PrefectClient], Awaitable[bool]]
) -> NoReturn:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + NOT_RUNNING_SECONDS
    while True:
        await lease.check()  # Prefect would suspend the run over an attempt that has taken over
        try:
            with prefect_reached():
                await asuspend_flow_run(wait_for_input=made, timeout=None, key=key)  # for as long as it takes
            raise TimestepError(f"The suspension '{key}' of step '{lease.step_id}' was over before it began.")
        except Pause:
            # What came while we were on our way here found no suspended run to resume. Should this fail, the repair
            # loop finds the run: nothing may come in place of Prefect's exception.
            with suppress(Exception):
                await lease.release()
                async with get_client() as client:
                    if await over(client):
                        await runs.resume(client, UUID(lease.step_id))
            raise
        except RuntimeError as error:
            # The run isn't running: a false crash that is put right in a moment, or it is cancelled, and so are we.
            if loop.time() > deadline:
                raise TimestepError(f"Step '{lease.step_id}' could not be suspended: {error}") from error
            await asyncio.sleep(1)


def _check_possible(calls: list[PendingCall]) -> None:
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None or run.deployment_id is None or run.parent_task_run_id is not None:
        names = ", ".join(f"'{call.tool}'" for call in calls)
        raise UsageError(
            f"The step needs a person's decision on {names}, for which only a run of the deployment 'step/step' can "
            f"be suspended: this one was called by other code. Start it by: timestep step"
        )


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do the work, again while the database or Prefect is away; all of it is safe to repeat."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while True:
        try:
            with prefect_reached():
                return await work()
        except ServiceUnavailableError:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(0.5)
