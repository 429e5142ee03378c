"""Files over real storage and a real database: whole or absent, whatever happens in the middle."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.spool import TEMPORARY
from storage.store import ObjectStore
from tests.storage.conftest import local_url, s3_endpoint, s3_url, store, store_url
from timestep.database.engine import Database
from timestep.database.models import FileRow
from timestep.errors import NotFoundError, StorageError, UsageError
from timestep.files import Files

__all__ = ["local_url", "s3_endpoint", "s3_url", "store", "store_url"]
NOW = timedelta()


@pytest.fixture
def files(database: Database, store: ObjectStore) -> Files:
    return Files(database, store)


async def stream(*chunks: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


async def read(files: Files, file_id: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in files.open(file_id, start, end)])


async def keys(store: ObjectStore) -> list[str]:
    return [found.key async for found in store.list()]


async def test_a_file_is_what_was_stored(files: Files, tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_bytes(b"a path")
    given = (b"bytes", tmp_path / "there.txt", iter([b"two ", b"chunks"]), stream(b"x" * 3_000_000, b"y" * 3_000_000))
    rows = [await files.create(data, "name.txt", "user_data") for data in given]
    texts = [await read(files, row.id) for row in rows]
    assert texts == [b"bytes", b"a path", b"two chunks", b"x" * 3_000_000 + b"y" * 3_000_000]
    assert [row.bytes for row in rows] == [len(text) for text in texts]
    assert await read(files, rows[3].id, 2_999_998, 3_000_002) == b"xxyy"
    assert await read(files, rows[3].id, 5_999_999) == b"y"
    assert (tmp_path / "there.txt").exists()


async def test_a_deleted_file_leaves_nothing(files: Files, store: ObjectStore) -> None:
    row = await files.create(b"bytes", "name.txt", "user_data")
    await files.delete(row.id)
    for ask in (files.get(row.id), files.reference(row.id), files.delete(row.id), read(files, row.id)):
        with pytest.raises(NotFoundError, match=f"No file '{row.id}'"):
            await ask
    assert await keys(store) == []


async def test_a_stream_that_breaks_leaves_nothing(files: Files, store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        await files.create(stream(b"half", error=ConnectionError()), "name.txt", "user_data")
    assert await files.list() == []
    assert await keys(store) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_what_fails_with_the_file_leaves_none(files: Files, database: Database, store: ObjectStore) -> None:
    async def refuse(session: AsyncSession, row: FileRow) -> None:
        raise UsageError("no")

    with pytest.raises(UsageError):
        await files.create(b"bytes", "name.txt", "user_data", within=refuse)
    async with database.session() as session:
        assert (await session.scalars(select(FileRow))).all() == []
    assert await keys(store) == []


async def test_what_a_killed_process_left_is_swept(files: Files, database: Database, store: ObjectStore) -> None:
    kept = await files.create(b"kept", "kept.txt", "user_data")
    arriving = await files.create(b"arriving", "arriving.txt", "user_data")
    leaving = await files.create(b"leaving", "leaving.txt", "user_data")
    async with database.session() as session:
        for row, state in ((arriving, "arriving"), (leaving, "leaving")):
            await session.execute(update(FileRow).where(FileRow.id == row.id).values(state=state))
    assert [row.id for row in await files.list()] == [kept.id]
    await files.sweep()
    assert await keys(store) == sorted([kept.key, arriving.key])  # its process may still be at it
    await files.sweep(NOW)
    assert await keys(store) == [kept.key]
    assert await read(files, kept.id) == b"kept"


async def test_an_expired_file_is_gone_at_once_and_swept_later(files: Files, store: ObjectStore) -> None:
    row = await files.create(b"old", "old.txt", "batch", datetime.now(UTC) - timedelta(seconds=1))
    stays = await files.create(b"new", "new.txt", "batch", datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(NotFoundError):
        await files.get(row.id)
    assert [found.id for found in await files.list()] == [stays.id]
    await asyncio.gather(files.sweep(), files.sweep())  # as two servers do
    assert await keys(store) == [stays.key]


async def test_a_list_has_an_order_and_pages(files: Files) -> None:
    made = [(await files.create(b"", f"{n}.txt", "batch" if n % 2 else "user_data")).id for n in range(4)]
    assert [row.id for row in await files.list()] == made[::-1]
    assert [row.id for row in await files.list(ascending=True, after=made[1], limit=1)] == [made[2]]
    assert [row.id for row in await files.list(after=made[2], purpose="batch")] == [made[1]]
    with pytest.raises(NotFoundError):
        await files.list(after="file-nobody")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "C:\\boot.ini", "a\0b\ud800", "файл 💾.txt", "x" * 999]
)
async def test_a_name_is_only_a_label(name: str, files: Files, store: ObjectStore) -> None:
    row = await files.create(b"bytes", name, "user_data")
    assert await keys(store) == [row.key] == [f"files/{row.id}/content"]
    assert row.filename == name.replace("\0", "�").replace("\ud800", "�")[:512]


async def test_bytes_that_changed_in_storage_are_not_given_whole(files: Files, store: ObjectStore) -> None:
    row = await files.create(b"bytes", "name.txt", "user_data")
    await store.put(row.key, b"BYTES")
    pieces = files.open(row.id)
    with pytest.raises(StorageError, match="corrupted"):
        await anext(pieces)


async def test_a_stream_is_moved_into_place_where_storage_is_a_folder(
    database: Database, local_url: str, tmp_path: Path
) -> None:
    store = ObjectStore.open(local_url)
    async with store.spool(stream(b"bytes")) as source:
        assert isinstance(source.data, Path)
        inode = source.data.stat().st_ino
        assert source.data.parent == tmp_path / "store" / TEMPORARY
        row = await Files(database, store).create(source, "name.txt", "user_data")
        assert (tmp_path / "store" / row.key).stat().st_ino == inode
