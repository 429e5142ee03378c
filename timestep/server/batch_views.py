"""A batch as OpenAI shows it: what Prefect says of its flow run, and what is on record of its lines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from openai.types import Batch, BatchError, BatchRequestCounts
from openai.types.batch import Errors

from timestep.server import ids, run_lists
from timestep.server.records import Records

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from timestep.batches.record import Results, Standing
    from timestep.batches.settings import BatchSettings

TAG, PREFIX, KIND = "openai:batch", "batch_", "batch"

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]


async def view(records: Records, run: FlowRun) -> Batch:
    """The batch as it stands."""
    return (await views(records, [run]))[0]


async def views(records: Records, runs: Sequence[FlowRun]) -> list[Batch]:
    """The batches as they stand."""
    from timestep.batches.record import standings

    found = await standings(records.database, [run.id for run in runs])
    return [await _batch(records, run, found[run.id]) for run in runs]


async def _batch(records: Records, run: FlowRun, standing: Standing) -> Batch:
    settings, status, results = settings_of(run), _status(run, standing), _results(run, standing)
    checked = standing.checked
    created = _seconds(run.created) or 0
    batch = Batch(
        id=ids.object_id(PREFIX, run.id),
        object="batch",
        endpoint=settings.endpoint,
        model=checked.model if checked else None,
        input_file_id=str(run.parameters.get("inputs")),
        completion_window=settings.completion_window,
        status=status,
        errors=await _errors(run, standing) if status == "failed" else None,
        created_at=created,
        expires_at=_seconds(settings.deadline),
        in_progress_at=_seconds(standing.checked_at) if _passed(standing) else None,
        finalizing_at=_seconds(standing.finalizing_at),
        request_counts=_counts(results, standing),
        output_file_id=results.output_file_id if results else None,
        error_file_id=results.error_file_id if results else None,
        metadata=run_lists.metadata_of(run) or None,
    )
    await _end(records, run, standing, batch)
    return batch


def _status(run: FlowRun, standing: Standing) -> Status:
    if standing.results is not None:
        return standing.results.status
    if run.state is not None and run.state.is_cancelling():
        return "cancelling"
    if run.state is not None and run.state.is_cancelled():
        return "cancelling" if lacks_results(run, standing) else "cancelled"
    if run.state is not None and run.state.is_failed():
        return "finalizing" if lacks_results(run, standing) else "failed"
    if standing.finalizing_at is not None:
        return "finalizing"
    return "in_progress" if _passed(standing) else "validating"


async def _end(records: Records, run: FlowRun, standing: Standing, batch: Batch) -> None:
    """The times of the batch's end."""
    from timestep.steps.views import answering

    ended = _seconds(run.state.timestamp) if run.state is not None else None
    match batch.status:
        case "completed":
            batch.completed_at = _seconds(standing.results_at)
        case "expired":
            batch.expired_at = _seconds(standing.results_at)
        case "failed":
            batch.failed_at = ended
        case "cancelling" | "cancelled":
            async with answering(records.client):
                states = await records.client.read_flow_run_states(run.id)
            asked = [_seconds(state.timestamp) for state in states if state.is_cancelling()]
            batch.cancelling_at = min(filter(None, asked), default=ended)
            batch.cancelled_at = ended if batch.status == "cancelled" else None


async def _errors(run: FlowRun, standing: Standing) -> Errors:
    from timestep.steps.views import error_of

    if standing.checked is not None and standing.checked.errors:
        return Errors(object="list", data=standing.checked.errors)
    return Errors(object="list", data=[BatchError(code="batch_failed", message=await error_of(run))])


def _results(run: FlowRun, standing: Standing) -> Results | None:
    """Its results, if it has come to them; not those of a time that it was stopped, once it goes on."""
    stopped = run.state is not None and (run.state.is_cancelled() or run.state.is_failed())
    return standing.results or (standing.stopped if stopped else None)


def lacks_results(run: FlowRun, standing: Standing) -> bool:
    """Whether the batch was stopped, and what it has got is in no files yet: its own process won't write them."""
    if run.state is None or standing.results is not None or standing.stopped is not None:
        return False
    return run.state.is_cancelled() or (run.state.is_failed() and _passed(standing))


def _passed(standing: Standing) -> bool:
    return standing.checked is not None and not standing.checked.errors


def _counts(results: Results | None, standing: Standing) -> BatchRequestCounts:
    if results is not None:
        return BatchRequestCounts(total=results.total, completed=results.completed, failed=results.failed)
    total = standing.checked.total if standing.checked and _passed(standing) else 0
    return BatchRequestCounts(total=total, completed=standing.completed, failed=standing.failed)


def settings_of(run: FlowRun) -> BatchSettings:
    """What the batch was told beside its file."""
    from timestep.batches.settings import BatchSettings

    return BatchSettings.model_validate(run.parameters.get("settings") or {})


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
