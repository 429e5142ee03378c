"""The files with a batch's results: each once for each time that the batch ended, with all that it had then."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, insert

from storage.store import ObjectStore
from timestep.batches.record import Answer, note_stopped, standings
from timestep.batches.results import END, PURPOSE, ResultFiles
from timestep.database.engine import Database
from timestep.database.models import StepRow, UnitRow
from timestep.files import Files


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(f"local://{tmp_path}")


async def begun(database: Database) -> UUID:
    run_id = uuid4()
    async with database.session() as session:
        await session.execute(insert(StepRow).values(id=str(run_id), attempt=1))
    return run_id


async def answered(database: Database, run_id: UUID, *numbers: int, status: int = 200, body: Any = None) -> None:
    values = {"kind": "batch", "name": "line", "fingerprint": "", "attempt": 1, "finished_at": func.now()}
    async with database.session() as session:
        for number in numbers:
            result = Answer(status=status, request_id=f"req_{number}", body=body).model_dump(mode="json")
            row = {"position": f"line/{number}", "request": {"custom_id": f"c{number}"}, "result": result}
            await session.execute(insert(UnitRow).values(step_id=str(run_id), **row, **values))


async def read(files: Files, file_id: str | None) -> list[str]:
    assert file_id is not None
    text = b"".join([piece async for piece in files.open(file_id)])
    return [json.loads(line)["custom_id"] for line in text.splitlines()]


async def test_whoever_writes_them_makes_one_file_of_each(database: Database, store: ObjectStore) -> None:
    run_id, files = await begun(database), Files(database, store)
    await answered(database, run_id, 2, 10, 1)
    await answered(database, run_id, 3, status=404)
    writers = [ResultFiles(database, store, run_id) for _ in range(4)]
    first, *others = await asyncio.gather(*(writer.write("cancelled", 20, "1") for writer in writers))
    assert all(other == first for other in others)
    assert (first.total, first.completed, first.failed) == (20, 3, 1)
    assert await read(files, first.output_file_id) == ["c1", "c2", "c10"]
    assert await read(files, first.error_file_id) == ["c3"]
    assert {row.id for row in await files.list(purpose=PURPOSE)} == {first.output_file_id, first.error_file_id}


async def test_a_batch_that_went_on_has_the_whole_file(database: Database, store: ObjectStore) -> None:
    run_id = await begun(database)
    writer = ResultFiles(database, store, run_id)
    await answered(database, run_id, 1)
    stopped = await writer.write("cancelled", 2, "1")
    await note_stopped(database, run_id, 1, stopped)
    assert (await standings(database, [run_id]))[run_id].stopped == stopped
    await answered(database, run_id, 2)
    whole = await writer.write("completed", 2, END)
    assert await read(Files(database, store), whole.output_file_id) == ["c1", "c2"]
    async with database.session() as session:
        (await session.get_one(StepRow, str(run_id))).attempt = 2
    assert (await standings(database, [run_id]))[run_id].stopped is None


async def test_answers_with_nul_are_counted_and_written(database: Database, store: ObjectStore) -> None:
    run_id = await begun(database)
    await answered(database, run_id, 1, body={"text": "a\0b", "status": 500})
    await answered(database, run_id, 2, status=400, body={"text": "half \ud800"})
    standing = (await standings(database, [run_id]))[run_id]
    assert (standing.completed, standing.failed) == (1, 1)
    results = await ResultFiles(database, store, run_id).write("failed", 3, "1")
    assert (results.completed, results.failed) == (1, 1)


async def test_lines_that_expired_are_errors(database: Database, store: ObjectStore) -> None:
    run_id = await begun(database)
    await answered(database, run_id, 1)

    async def left() -> Any:
        yield 2, "c2"
        yield 3, "c3"

    results = await ResultFiles(database, store, run_id).write("expired", 3, END, left())
    assert (results.completed, results.failed) == (1, 2)
    assert await read(Files(database, store), results.error_file_id) == ["c2", "c3"]
