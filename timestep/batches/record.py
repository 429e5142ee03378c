"""What is on record of a batch: units of its run. Its check, its lines, and the files that its results are in."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Integer, Text, case, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.references import Reference
from timestep.batches.lines import Checked
from timestep.database.engine import Database
from timestep.database.models import StepRow, UnitRow

CHECK, FILES, LINES = "batch/check", "batch/files", "line/"
# What follows is the attempt after which the batch was stopped: each may leave more behind than the one before.
STOPPED = "batch/stopped/"
WRITTEN = "batch/written/"  # then the ending and the kind of a file

Ended = Literal["completed", "expired", "cancelled", "failed"]


class Answer(BaseModel):
    """What came of a line: a unit's result. ``status`` is HTTP's; a large body is an object in storage."""

    status: int
    request_id: str
    body: Any = None
    stored: Reference | None = None


class Results(BaseModel):
    """Where a batch's results are, and what they are: written when it ended, or when it was stopped."""

    status: Ended
    total: int
    completed: int
    failed: int
    output_file_id: str | None = None
    error_file_id: str | None = None


class Written(BaseModel):
    """One of the results' files; none where there was no line for it."""

    id: str | None = None
    lines: int = 0


class Standing(BaseModel):
    """How far a batch has come. ``stopped``: the results, if its last attempt was stopped."""

    attempt: int = 0
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
        for step_id, attempt in await session.execute(select(StepRow.id, StepRow.attempt).where(StepRow.id.in_(ids))):
            found[UUID(step_id)].attempt = attempt
        its_own = or_(UnitRow.position.in_((CHECK, FILES)), UnitRow.position.startswith(STOPPED))
        of_batch = (UnitRow.step_id.in_(ids), its_own)
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


async def note_stopped(database: Database, run_id: UUID, attempt: int, results: Results) -> None:
    """Put down where the results of a batch are that no process works on any more, unless somebody has."""
    async with database.session() as session:
        # One that was cancelled before any process had it has no lease.
        await session.execute(insert(StepRow).values(id=str(run_id)).on_conflict_do_nothing())
        await _note_once(session, run_id, f"{STOPPED}{attempt}", results)


async def note_written(session: AsyncSession, run_id: UUID, position: str, file: Written) -> bool:
    """Put down one of the results' files, with what makes it visible. False: there is one already."""
    return await _note_once(session, run_id, position, file)


async def written(database: Database, run_id: UUID, position: str) -> Written | None:
    """The file at this position."""
    chosen = select(UnitRow.result).where(UnitRow.step_id == str(run_id), UnitRow.position == position)
    async with database.session() as session:
        found = await session.scalar(chosen)
    return None if found is None else Written.model_validate(found)


async def _note_once(session: AsyncSession, run_id: UUID, position: str, result: BaseModel) -> bool:
    values = {"kind": "batch", "name": "files", "fingerprint": "", "attempt": 0, "finished_at": func.now()}
    row = insert(UnitRow).values(step_id=str(run_id), position=position, result=result.model_dump(), **values)
    return await session.scalar(row.on_conflict_do_nothing().returning(UnitRow.position)) is not None


def _note(standing: Standing, unit: UnitRow) -> None:
    if unit.position == FILES:
        standing.finalizing_at = unit.started_at
    if unit.finished_at is None:
        return
    if unit.position == CHECK:
        standing.checked, standing.checked_at = Checked.model_validate(unit.result), unit.finished_at
    elif unit.position == FILES:
        standing.results, standing.results_at = Results.model_validate(unit.result), unit.finished_at
    elif unit.position == f"{STOPPED}{standing.attempt}":
        standing.stopped = Results.model_validate(unit.result)
