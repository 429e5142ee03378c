"""The events of a fine-tuning job: what its step tells while it goes on, in OpenAI's words."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from openai.types.fine_tuning import FineTuningJobEvent

from timestep.errors import NotFoundError
from timestep.server import ids
from timestep.server.fine_tuning.views import PREFIX

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from timestep.database.engine import Database
    from timestep.database.models import EventRow

SHOWN = (
    "step.started",
    "step.finished",
    "training.message",
    "training.progress",
    "training.epoch",
    "training.paused",
)
_CREATED, _CANCELLED = 0, 2**63 - 1  # numbers of the events that no process tells

Level = Literal["info", "warn", "error"]


async def job_events(database: Database, run: FlowRun, limit: int, after: str | None) -> list[FineTuningJobEvent]:
    """One more than ``limit`` events, the newest first, older than the one named ``after``."""
    from sqlalchemy import select

    from timestep.database.models import EventRow

    before = _CANCELLED + 1 if after is None else _number(run, after)
    chosen = select(EventRow).where(
        EventRow.step_id == str(run.id), EventRow.id < min(before, _CANCELLED), EventRow.type.in_(SHOWN)
    )
    async with database.session() as session:
        rows = list(await session.scalars(chosen.order_by(EventRow.id.desc()).limit(limit + 1)))
    found = [_event(run, row) for row in rows]
    if before > _CANCELLED and run.state is not None and run.state.is_cancelled():
        found.insert(0, _told(run, _CANCELLED, run.state.timestamp, "The job was cancelled."))
    if before > _CREATED and len(rows) <= limit:
        name = ids.object_id(PREFIX, run.id)
        found.append(_told(run, _CREATED, run.created, f"Created fine-tuning job: {name}"))
    return found[: limit + 1]


def _event(run: FlowRun, row: EventRow) -> FineTuningJobEvent:
    data: dict[str, Any] = row.data
    level: Level = "info"
    match row.type:
        case "step.started":
            first = data.get("attempt") == 1
            message = "Fine-tuning job started" if first else "Fine-tuning job goes on after its last finished epoch"
        case "training.message":
            message = str(data.get("message"))
        case "training.progress":
            return _metrics(run, row)
        case "training.epoch":
            message = f"Epoch {data.get('epoch')} finished: training loss={data.get('loss'):.4f}; checkpoint created"
        case "training.paused":
            message = "The job was paused."
        case _ if data.get("status") == "succeeded":
            message = f"The job has successfully completed: {data.get('output')}"
        case _:
            message, level = f"The job failed: {data.get('error')}", "error"
    return _told(run, row.id, row.created_at, message, level, None if row.type != "training.epoch" else data)


def _metrics(run: FlowRun, row: EventRow) -> FineTuningJobEvent:
    facts: dict[str, Any] = row.data
    windows = facts["windows"]
    step = (facts["epoch"] - 1) * windows + facts["windows_done"]
    total = run.parameters["training"]["epochs"] * windows
    data = {
        "step": step,
        "total_steps": total,
        "epoch": facts["epoch"],
        "train_loss": facts["loss"],
        "train_mean_token_accuracy": facts["accuracy"],
    }
    told = _told(run, row.id, row.created_at, f"Step {step}/{total}: training loss={facts['loss']:.4f}", data=data)
    return told.model_copy(update={"type": "metrics"})


def _told(
    run: FlowRun, number: int, at: datetime | None, message: str, level: Level = "info", data: Any = None
) -> FineTuningJobEvent:
    return FineTuningJobEvent(
        id=f"ftevent-{run.id.hex}{number:016x}",
        object="fine_tuning.job.event",
        created_at=int(at.timestamp()) if at else 0,
        level=level,
        message=message,
        type="message",
        data=data,
    )


def _number(run: FlowRun, name: str) -> int:
    start = f"ftevent-{run.id.hex}"
    try:
        if not name.startswith(start) or len(name) != len(start) + 16:
            raise ValueError(name)
        return int(name.removeprefix(start), 16)
    except ValueError:
        raise NotFoundError("event", name[:100]) from None
