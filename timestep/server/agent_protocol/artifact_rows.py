"""Rows of artifacts: written before their bytes, shown once those are stored whole."""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from timestep.errors import NotFoundError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from timestep.database.models import ArtifactRow
    from timestep.server.records import Shelves

# An artifact whose bytes were on their way to storage for so long lost its server.
ABANDONED_AFTER = timedelta(days=1)


async def keep(shelves: "Shelves", row: "ArtifactRow", data: Any) -> None:
    """Store the bytes, and show the row. Wherever it is cut, :func:`sweep` finds what is left by the row."""
    from sqlalchemy import update

    from timestep.database.models import ArtifactRow

    row.bytes, row.stored = 0, False
    async with shelves.database.session() as session:
        session.add(row)
    try:
        size = (await shelves.store.put(row.key, data)).size
        async with shelves.database.session() as session:
            shown = update(ArtifactRow).where(ArtifactRow.id == row.id)
            await session.execute(shown.values(bytes=size, stored=True))
    except Exception:
        await drop(shelves, row)
        raise


async def drop(shelves: "Shelves", row: "ArtifactRow") -> None:
    """Remove the bytes, then the row."""
    from sqlalchemy import delete

    from timestep.database.models import ArtifactRow

    with suppress(NotFoundError):  # they never came, or another one was quicker
        await shelves.store.delete(row.key)
    async with shelves.database.session() as session:
        await session.execute(delete(ArtifactRow).where(ArtifactRow.id == row.id, ~ArtifactRow.stored))


async def sweep(shelves: "Shelves", abandoned_after: timedelta = ABANDONED_AFTER) -> None:
    """Remove what killed servers left. Safe with several servers at once."""
    from sqlalchemy import func, select

    from timestep.database.models import ArtifactRow

    late = ArtifactRow.created_at < func.now() - abandoned_after
    async with shelves.database.session() as session:
        abandoned = (await session.scalars(select(ArtifactRow).where(~ArtifactRow.stored, late))).all()
    for row in abandoned:
        await drop(shelves, row)


async def of_tasks(session: "AsyncSession", task_ids: list[str]) -> Mapping[str, list["ArtifactRow"]]:
    """The artifacts of each task, oldest first."""
    from timestep.database.models import ArtifactRow

    return await _grouped(session, ArtifactRow.task_id, task_ids)


async def of_steps(session: "AsyncSession", step_ids: list[str]) -> Mapping[str, list["ArtifactRow"]]:
    """The artifacts of each step, oldest first."""
    from timestep.database.models import ArtifactRow

    return await _grouped(session, ArtifactRow.step_id, step_ids)


async def _grouped(session: "AsyncSession", column: Any, ids: list[str]) -> Mapping[str, list["ArtifactRow"]]:
    from sqlalchemy import select

    from timestep.database.models import ArtifactRow

    found: dict[str, list[ArtifactRow]] = defaultdict(list)
    chosen = select(column, ArtifactRow).where(column.in_(ids), ArtifactRow.stored).order_by(ArtifactRow.number)
    for owner, row in await session.execute(chosen):
        found[owner].append(row)
    return found


async def page(session: "AsyncSession", task_id: str, limit: int, offset: int) -> tuple[list["ArtifactRow"], int]:
    """Some of a task's artifacts, oldest first, and how many there are."""
    from sqlalchemy import func, select

    from timestep.database.models import ArtifactRow

    mine = (ArtifactRow.task_id == task_id) & ArtifactRow.stored
    total = await session.scalar(select(func.count()).select_from(ArtifactRow).where(mine)) or 0
    chosen = select(ArtifactRow).where(mine).order_by(ArtifactRow.number).limit(limit).offset(offset)
    return list(await session.scalars(chosen)), total
