"""What is on record of a batch: units of its run. Its check, its lines, and the files that its results are in."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Integer, Text, case, func, select
from sqlalchemy.dialects.postgresql import insert

from storage.references import Reference
from timestep.batches.lines import Checked
from timestep.database.engine import Database
from timestep.database.models import StepRow, UnitRow

CHECK, FILES, STOPPED = "batch/check", "batch/files", "batch/stopped"
LINES = "line/"


class Answer(BaseModel):
    """What came of a line: a unit's result. ``status`` is HTTP's; a large body is an object in storage."""

    status: int
    request_id: str
    body: Any = None
    stored: Reference | None = None


class Results(BaseModel):
    """Where a batch's results are, and what they are: written when it ended, or when it was stopped."""

    status: Literal["completed", "expired", "cancelled"]
    total: int
    completed: int
    failed: int
    output_file_id: str | None = None
    error_file_id: str | None = None


class Standing(BaseModel):
    """How far a batch has come."""

    checked: Checked | None = None
    checked_at: datetime | None = None
    finalizing_at: datetime | None = None
    results: Results | None = None
    results_at: datetime | None = None
    stopped: Results | None = None
    completed: int = 0
    failed: int = 0


async def standings(database: Database, run_ids: Sequence[UUID]) -> dict[UUID, Standing]:
    """The standing of each of these batches."""
    found = {run_id: Standing() for run_id in run_ids}
    ids = [str(run_id) for run_id in run_ids]
    async with database.session() as session:
        of_batch = (UnitRow.step_id.in_(ids), UnitRow.position.in_((CHECK, FILES, STOPPED)))
        for unit in await session.scalars(select(UnitRow).where(*of_batch)):
            _note(found[UUID(unit.step_id)], unit)
        # Out of the text, in which it comes first: PostgreSQL reads no JSON that holds a NUL, or half a surrogate pair.
        status = func.substring(UnitRow.result.cast(Text), r'"status": ?([0-9]+)').cast(Integer)
        done = (UnitRow.step_id.in_(ids), UnitRow.position.startswith(LINES), UnitRow.finished_at.is_not(None))
        failed = func.count(case((status >= 400, 1)))
        counts = select(UnitRow.step_id, func.count(), failed).where(*done).group_by(UnitRow.step_id)
        for step_id, finished, bad in await session.execute(counts):
            found[UUID(step_id)].completed, found[UUID(step_id)].failed = finished - bad, bad
    return found


async def note_stopped(database: Database, run_id: UUID, results: Results) -> bool:
    """Put down where the results of a batch are that no process works on any more. False: somebody has."""
    values = {"kind": "batch", "name": "files", "fingerprint": "", "attempt": 0, "finished_at": func.now()}
    row = insert(UnitRow).values(step_id=str(run_id), position=STOPPED, result=results.model_dump(), **values)
    async with database.session() as session:
        # One that was cancelled before any process had it has no lease.
        await session.execute(insert(StepRow).values(id=str(run_id)).on_conflict_do_nothing())
        noted = await session.scalar(row.on_conflict_do_nothing().returning(UnitRow.position))
    return noted is not None


def _note(standing: Standing, unit: UnitRow) -> None:
    if unit.position == FILES:
        standing.finalizing_at = unit.started_at
    if unit.finished_at is None:
        return
    if unit.position == CHECK:
        standing.checked, standing.checked_at = Checked.model_validate(unit.result), unit.finished_at
    elif unit.position == FILES:
        standing.results, standing.results_at = Results.model_validate(unit.result), unit.finished_at
    else:
        standing.stopped = Results.model_validate(unit.result)
