"""Which versions unfinished trainings start from: each needs the file until its end, so nobody deletes it before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from timestep.errors import ConflictError
from timestep.models.routing import PREFIX as LOCAL
from timestep.server import ids
from timestep.server.fine_tuning.views import PREFIX, TAG

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from timestep.database.engine import Database
    from timestep.server.records import Records

SERVED, ORIGIN = "training/served", "training/origin"  # the units in which a training notes where it starts


async def refuse_needed(records: Records, model: str) -> None:
    """See that no unfinished training starts from this version, or from one of this model's.

    Raises:
        ConflictError: one does.
        ServiceUnavailableError: Prefect's server or the database is away.
    """
    from timestep.agents.types import Mode
    from timestep.steps.lists import unfinished

    named = model.removeprefix(LOCAL)
    runs = [run async for run in unfinished(records.client) if run.parameters.get("mode") == Mode.TRAINING]
    noted = await _noted(records.database, [run.id for run in runs])
    for run in runs:
        start = noted[run.id] if run.id in noted else _asked(run)
        if start is not None and named in (start, start.partition("@")[0]):
            who = f"job '{ids.object_id(PREFIX, run.id)}'" if TAG in run.tags else f"step '{run.id}'"
            raise ConflictError(
                f"Version '{LOCAL}{start}' is what fine-tuning {who} starts from. Wait for its end, or cancel it first."
            )


async def _noted(database: Database, run_ids: Sequence[UUID]) -> dict[UUID, str | None]:
    """What those that have begun start from, as 'name@version'; None: from a base."""
    from sqlalchemy import select

    from timestep.database.models import UnitRow

    chosen = select(UnitRow).where(
        UnitRow.step_id.in_([str(run_id) for run_id in run_ids]),
        UnitRow.position.in_((SERVED, ORIGIN)),
        UnitRow.finished_at.is_not(None),
    )
    noted = {}
    async with database.session() as session:
        for unit in await session.scalars(chosen):
            version = unit.result["start"] if unit.position == ORIGIN and unit.result else unit.result
            noted[UUID(unit.step_id)] = f"{version['name']}@{version['version']}" if version else None
    return noted


def _asked(run: FlowRun) -> str | None:
    """What one that has not begun was told; a name without a version means what is served then."""
    asked = str(run.parameters.get("model") or "").removeprefix(LOCAL)
    return asked if "@" in asked else None
