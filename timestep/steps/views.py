"""A step as people know it: a view of its Prefect flow run and of the rows beside it. Keeps nothing of its own."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError
from sqlalchemy import select

from timestep import runs
from timestep.agents.record.approvals import PENDING, VERDICTS, Asked, asked_by
from timestep.agents.record.step_view import ENDED, PendingView, StepStatus, StepView
from timestep.agents.record.waiting import Kind, PendingCall
from timestep.agents.types import Mode
from timestep.database.engine import Database
from timestep.database.models import StepRow
from timestep.errors import NotFoundError, RunFailedError, ServiceUnavailableError, UsageError

ANSWER_SECONDS = 5.0  # for Prefect's server; then it counts as away, unless it says that it is well
BUSY_SECONDS = 20.0  # for one that does, and has much to do
HEALTH_SECONDS = 2.0  # for it to say so
PAGE = 200  # most runs that Prefect's API returns at once
PREFIX_DIGITS = 8  # of an id that is cut short, at least
STEP, BATCH = "step", "batch"  # the flows' names
STEPS = FlowFilter(name=FlowFilterName(any_=[STEP]))
RUNS = FlowFilter(name=FlowFilterName(any_=[STEP, BATCH]))  # what can be cancelled and started again


async def find(client: PrefectClient, database: Database, name: str) -> UUID:
    """The step's or batch's id, from all of it or from its first digits (8 at least).

    Raises:
        UsageError: too short, no id, or the beginning of several.
        NotFoundError: no step's id begins so.
        ServiceUnavailableError: Prefect's server or the database is away.
    """
    try:
        return UUID(name)
    except ValueError:
        digits = name.replace("-", "").lower()
    if not PREFIX_DIGITS <= len(digits) < 32 or not set(digits) <= set("0123456789abcdef"):
        raise UsageError(f"'{name}' is no step id. Give the whole id, or its first {PREFIX_DIGITS} digits at least.")
    begin = "-".join(part for part in (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]) if part)
    async with database.session() as session:
        found = set(await session.scalars(select(StepRow.id).where(StepRow.id.startswith(begin)).limit(10)))
    async with answering(client):
        # Those that no process has taken up yet are known to Prefect alone.
        waiting = FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING, StateType.CANCELLED])
        chosen = FlowRunFilter(state=FlowRunFilterState(type=waiting))
        recent = await client.read_flow_runs(flow_filter=RUNS, flow_run_filter=chosen, limit=200)
    found |= {str(run.id) for run in recent if str(run.id).startswith(begin)}
    if not found:
        raise NotFoundError("step", name)
    if len(found) > 1:
        raise UsageError(f"'{name}' is the beginning of several steps: {', '.join(sorted(found))}. Give more digits.")
    return UUID(found.pop())


async def view(client: PrefectClient, database: Database, run_id: UUID, storage_url: str) -> StepView:
    """The step as it stands.

    Raises:
        NotFoundError: there is no such step.
        ServiceUnavailableError: Prefect's server or the database is away.
        StorageError: the result can't be read.
    """
    run = await read(client, run_id)
    (seen,) = await views(database, [run])
    if seen.status is StepStatus.SUCCEEDED:
        with suppress(NotFoundError):  # done, though storage holds its result no more
            returned = await runs.result(run, storage_url)
            seen.result = returned if isinstance(returned, dict) else returned.model_dump(mode="json")
            seen.output = seen.result.get("output")
    return seen


async def views(database: Database, found: list[FlowRun]) -> list[StepView]:
    """The steps that these flow runs are, as they stand, without what they returned.

    Raises:
        ServiceUnavailableError: the database is away.
    """
    ids = [str(run.id) for run in found]
    asked = await asked_by(database, ids)
    async with database.session() as session:
        chosen = select(StepRow.id, StepRow.attempt).where(StepRow.id.in_(ids))
        attempts = {row.id: row.attempt for row in await session.execute(chosen)}
    return [await _view(run, asked[str(run.id)], attempts.get(str(run.id), 0)) for run in found]


async def _view(run: FlowRun, asked: list[Asked], attempt: int) -> StepView:
    pending = [call for call in asked if call.status == PENDING]
    status = status_of(run, pending)
    over = status in ENDED
    return StepView(
        id=str(run.id),
        status=status,
        state=(run.state and run.state.name) or "",
        name=run.name,
        agent=str(run.parameters.get("agent") or "assistant"),
        mode=Mode(run.parameters.get("mode") or Mode.INFERENCE),
        session_id=run.parameters.get("session_id") or None,
        created=run.created,
        started=run.start_time,
        ended=run.end_time if over else None,
        attempt=attempt,
        # Of a step that has ended, nobody asks any more what it was waiting for.
        pending=[] if over else [_pending(call) for call in pending],
        decided=[call for call in asked if call.status != PENDING],
        error=await error_of(run) if over else None,
    )


def status_of(run: FlowRun, pending: Iterable[PendingCall]) -> StepStatus:
    """Where the step stands, from its flow run's state and from the calls that wait for a person."""
    kinds = {call.kind for call in pending}
    match run.state.type if run.state is not None else None:
        case StateType.COMPLETED:
            return StepStatus.SUCCEEDED
        case StateType.FAILED:
            return StepStatus.FAILED
        case StateType.CANCELLED:
            return StepStatus.CANCELLED
        case StateType.PAUSED if kinds:
            return StepStatus.WAITING_FEEDBACK if kinds == {Kind.QUESTION} else StepStatus.WAITING_APPROVAL
        case StateType.SCHEDULED | StateType.PENDING | None if not run.run_count:
            return StepStatus.NOT_STARTED
    return StepStatus.IN_PROGRESS


async def ended(client: PrefectClient, run_id: UUID) -> dict[str, Any] | None:
    """What the step's ``step.finished`` says, had its process been able to write one; None while it may go on.

    Raises:
        ServiceUnavailableError: Prefect's server is away.
    """
    try:
        run = await read(client, run_id)
    except NotFoundError:
        return {"status": StepStatus.CANCELLED, "error": "The flow run was deleted."}
    status = status_of(run, [])
    return {"status": status, "error": await error_of(run)} if status in ENDED else None


async def error_of(run: FlowRun, storage_url: str = "") -> str | None:
    """Why the run ended without a result, in one line."""
    try:
        if run.state is None or not run.state.is_completed():
            await runs.result(run, storage_url)
    except RunFailedError as error:
        return str(error)
    return None


async def read(client: PrefectClient, run_id: UUID, flows: FlowFilter = STEPS) -> FlowRun:
    """The step's flow run, or that of one of other flows.

    Raises:
        NotFoundError: there is none, or it is another flow's.
        ServiceUnavailableError: Prefect's server is away.
    """
    async with answering(client):
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        found = await client.read_flow_runs(flow_filter=flows, flow_run_filter=chosen)
    if not found:
        raise NotFoundError("step", str(run_id))
    return found[0]


async def pages(
    client: PrefectClient, chosen: FlowRunFilter, *, flows: FlowFilter | None = STEPS, sort: FlowRunSort | None = None
) -> AsyncGenerator[list[FlowRun]]:
    """Flow runs, as many at a time as Prefect's API returns. ServiceUnavailableError: Prefect's server is away."""
    offset, more = 0, True
    while more:
        async with answering(client):
            found = await client.read_flow_runs(
                flow_filter=flows, flow_run_filter=chosen, sort=sort, limit=PAGE, offset=offset
            )
        offset, more = offset + PAGE, len(found) == PAGE
        yield found


@asynccontextmanager
async def answering(client: PrefectClient, seconds: float = ANSWER_SECONDS) -> AsyncIterator[None]:
    """Names Prefect's server where it doesn't answer, or not in time; one that is only busy gets more of it."""
    try:
        async with asyncio.timeout(seconds) as limit:
            patience = asyncio.create_task(_be_patient(str(client.api_url), limit, seconds))
            try:
                yield
            finally:
                patience.cancel()
    except (httpx.TransportError, TimeoutError) as error:
        raise ServiceUnavailableError("Prefect server", str(client.api_url)) from error
    except PrefectHTTPStatusError as error:
        if error.response.status_code < 500:
            raise
        raise ServiceUnavailableError("Prefect server", str(client.api_url)) from error


async def _be_patient(api_url: str, limit: asyncio.Timeout, seconds: float) -> None:
    """Put the limit off where the server is well. Asked apart: the client would try again, behind what waits there."""
    await asyncio.sleep(seconds - HEALTH_SECONDS)
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient(timeout=HEALTH_SECONDS, trust_env=False) as probe:
            if (await probe.get(f"{api_url.rstrip('/')}/health")).is_success and not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time() + max(BUSY_SECONDS, seconds))


def _pending(call: Asked) -> PendingView:
    known = call.model_dump(include=set(PendingCall.model_fields))
    verdicts = list(VERDICTS[call.kind])
    return PendingView(**known, verdicts=verdicts, call_digest=call.digest, deadline_at=call.deadline_at)
