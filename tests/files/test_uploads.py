"""Uploads over real storage and a real database: what comes in parts becomes one file, once."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from storage.store import ObjectStore
from tests.files.test_files import files, keys, read
from tests.storage.conftest import local_url, s3_endpoint, s3_url, store, store_url
from timestep.database.engine import Database
from timestep.database.models import UploadPartRow, UploadRow
from timestep.errors import NotFoundError, UsageError
from timestep.files import Files
from timestep.files.uploads import Uploads

__all__ = ["files", "local_url", "s3_endpoint", "s3_url", "store", "store_url"]


@pytest.fixture
def uploads(database: Database, store: ObjectStore) -> Uploads:
    return Uploads(database, store)


async def begun(uploads: Uploads, *parts: bytes) -> tuple[str, list[str]]:
    upload = await uploads.create("name.txt", "user_data", sum(map(len, parts)), "text/plain")
    return upload.id, [(await uploads.add_part(upload.id, part)).id for part in parts]


async def change(database: Database, upload_id: str, **values: object) -> None:
    async with database.session() as session:
        await session.execute(update(UploadRow).where(UploadRow.id == upload_id).values(**values))


async def test_parts_become_one_file_in_the_order_asked(uploads: Uploads, files: Files, store: ObjectStore) -> None:
    upload_id, parts = await begun(uploads, b"b" * 2_000_000, b"a", b"c")
    done = await uploads.complete(upload_id, [parts[1], parts[0], parts[2]])
    assert done.status == "completed"
    assert await read(files, str(done.file_id)) == b"a" + b"b" * 2_000_000 + b"c"
    assert await keys(store) == [f"files/{done.file_id}/content"]


async def test_two_who_complete_at_once_get_one_file(uploads: Uploads, files: Files, store: ObjectStore) -> None:
    upload_id, parts = await begun(uploads, b"a", b"b")
    both = await asyncio.gather(*(uploads.complete(upload_id, parts) for _ in range(2)))
    again = await uploads.complete(upload_id, parts)
    assert {done.file_id for done in (*both, again)} == {(await files.list())[0].id}
    assert len(await files.list()) == len(await keys(store)) == 1
    with pytest.raises(UsageError, match="is completed"):
        await uploads.complete(upload_id, parts[::-1])


async def test_an_upload_is_cancelled_or_completed(uploads: Uploads, files: Files, store: ObjectStore) -> None:
    upload_id, parts = await begun(uploads, b"a" * 3_000_000, b"b")
    both = uploads.cancel(upload_id), uploads.complete(upload_id, parts)
    ends = await asyncio.gather(*both, return_exceptions=True)
    row = next(end for end in ends if isinstance(end, UploadRow))
    assert [type(end) for end in ends].count(UsageError) == 1
    assert len(await files.list()) == len(await keys(store)) == (1 if row.status == "completed" else 0)


async def test_an_upload_expires_after_its_last_part(uploads: Uploads, database: Database, store: ObjectStore) -> None:
    upload_id, parts = await begun(uploads, b"a", b"b")
    await change(database, upload_id, expires_at=datetime.now(UTC) + timedelta(minutes=1))
    parts.append((await uploads.add_part(upload_id, b"")).id)
    async with database.session() as session:
        row = await session.get_one(UploadRow, upload_id)
    assert row.expires_at > datetime.now(UTC) + timedelta(minutes=50)
    await change(database, upload_id, expires_at=datetime.now(UTC))
    for ask in (uploads.add_part(upload_id, b""), uploads.complete(upload_id, parts), uploads.cancel(upload_id)):
        with pytest.raises(UsageError, match="is expired"):
            await ask
    assert len(await keys(store)) == 3
    await uploads.sweep()
    assert await keys(store) == []


async def test_what_a_killed_process_left_is_swept(uploads: Uploads, database: Database, store: ObjectStore) -> None:
    upload_id, _ = await begun(uploads, b"a")
    await store.put(f"uploads/{upload_id}/part_unacknowledged", b"its process was killed before its row was written")
    await uploads.sweep()
    assert len(await keys(store)) == 2  # it may yet be completed
    await change(database, upload_id, status="cancelled")  # by a process that was killed before it had cleared
    await asyncio.gather(uploads.sweep(), uploads.sweep())
    assert await keys(store) == []
    async with database.session() as session:
        assert (await session.scalars(select(UploadPartRow))).all() == []
    assert (await uploads.cancel(upload_id)).status == "cancelled"  # it is still known
    await change(database, upload_id, expires_at=datetime.now(UTC) - timedelta(hours=1))
    await uploads.sweep(timedelta())
    with pytest.raises(NotFoundError, match="No upload"):
        await uploads.cancel(upload_id)
