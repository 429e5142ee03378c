"""A step, or a batch of them, stopped by a person, or started again by one."""

from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Scheduled
from sqlalchemy import update

from timestep import runs
from timestep.agents.record.approvals import Approvals
from timestep.agents.record.lease import alive
from timestep.agents.record.step_view import ENDED, StepStatus
from timestep.database.engine import Database
from timestep.database.models import StepRow
from timestep.errors import ConflictError
from timestep.steps.decisions import go_on
from timestep.steps.views import RUNS, STEP, answering, read, status_of

CANCEL_SECONDS = 30.0  # a batch may have many steps


async def cancel(client: PrefectClient, database: Database, run_id: UUID) -> None:
    """Have the step, or the batch with its steps, stopped: at once where no process runs it, else within seconds.

    Raises:
        NotFoundError: no such step.
        ConflictError: it has ended already, other than by a cancel.
        ServiceUnavailableError: Prefect's server or the database is away.
    """

    async def lives(step_id: UUID) -> bool:
        return (await alive(database, [str(step_id)]))[str(step_id)]

    run = await read(client, run_id, RUNS)
    async with answering(client, CANCEL_SECONDS):
        run = await runs.cancel(client, run_id, lives)
        if (status := status_of(run, [])) in ENDED and status is not StepStatus.CANCELLED:
            raise ConflictError(f"Step '{run_id}' has {status} already.")
        # A batch's own process does this too, where it has one.
        if (await client.read_flow(run.flow_id)).name != STEP:
            await runs.cancel_started(client, run_id, lives)


async def resume(client: PrefectClient, database: Database, run_id: UUID, *, accept_changes: bool = False) -> None:
    """Start a step, or a batch, again that failed or was cancelled: what it had finished is not done again.

    Args:
        accept_changes: Go on from the record although the code asks something else now than was recorded.

    Raises:
        NotFoundError: no such step.
        ConflictError: it runs, has succeeded, or waits for a person.
        ServiceUnavailableError: Prefect's server or the database is away.
    """
    run = await read(client, run_id, RUNS)
    pending = await Approvals(database, str(run_id)).pending()
    status = status_of(run, pending)
    if run.state is not None and run.state.is_paused() and not pending:
        await go_on(client, database, run_id)
        return
    if status in (StepStatus.WAITING_APPROVAL, StepStatus.WAITING_FEEDBACK):
        raise ConflictError(f"Step '{run_id}' waits for a person. Decide: timestep approve {run_id}")
    stopped = run.state is not None and (run.state.is_failed() or run.state.is_crashed() or run.state.is_cancelled())
    if not stopped:
        raise ConflictError(f"Step '{run_id}' is {status}; only one that failed or was cancelled can be started again.")
    fresh: dict[str, Any] = {"crashes": 0} | ({"accept_changes": True} if accept_changes else {})
    async with database.session() as session:
        await session.execute(update(StepRow).where(StepRow.id == str(run_id)).values(fresh))
    async with answering(client):
        answer: OrchestrationResult[Any] = await client.set_flow_run_state(
            run_id, Scheduled(message="Started again by a person.")
        )
    if answer.status is not SetStateStatus.ACCEPT:
        reason = getattr(answer.details, "reason", answer.status)
        raise ConflictError(f"Step '{run_id}' could not be started again: {reason}")
