"""Artifacts of the Agent Protocol over a real database and storage: shown whole or not at all."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from storage.store import ObjectStore
from timestep.database.engine import Database
from timestep.database.models import ArtifactRow, TaskRow
from timestep.server.agent_protocol import artifact_rows
from timestep.server.records import Shelves

TASK = "task"


@pytest.fixture
async def shelves(database: Database, tmp_path: Path) -> Shelves:
    async with database.session() as session:
        session.add(TaskRow(id=TASK))
    return Shelves(database, ObjectStore.open(f"local://{tmp_path}"))


def artifact(name: str) -> ArtifactRow:
    return ArtifactRow(id=name, task_id=TASK, file_name=name, key=f"artifacts/{TASK}/{name}")


async def left(shelves: Shelves) -> tuple[int, int]:
    """How many rows there are, and how many objects."""
    async with shelves.database.session() as session:
        rows = await session.scalar(select(func.count()).select_from(ArtifactRow)) or 0
    return rows, len([found async for found in shelves.store.list("artifacts/")])


async def test_an_upload_that_breaks_off_leaves_nothing(shelves: Shelves) -> None:
    async def data() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await artifact_rows.keep(shelves, artifact("a"), data())
    assert await left(shelves) == (0, 0)


async def test_what_a_killed_server_left_is_hidden_and_swept(shelves: Shelves) -> None:
    await artifact_rows.keep(shelves, artifact("whole"), b"whole")
    row = artifact("killed")
    row.bytes, row.stored = 0, False
    await shelves.store.put(row.key, b"bytes")
    async with shelves.database.session() as session:
        session.add(row)
    async with shelves.database.session() as session:
        shown, total = await artifact_rows.page(session, TASK, 10, 0)
        of_task = (await artifact_rows.of_tasks(session, [TASK]))[TASK]
    assert ([one.id for one in shown], total, [one.id for one in of_task]) == (["whole"], 1, ["whole"])
    await artifact_rows.sweep(shelves)  # it may still be on its way
    assert await left(shelves) == (2, 2)
    await artifact_rows.sweep(shelves, timedelta())
    assert await left(shelves) == (1, 1)
