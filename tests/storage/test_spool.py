"""Streams on their way to storage: on a disk, moved or sent from there, and swept when their process is gone."""

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from storage.drivers import parse_url
from storage.spool import LOCKED_AFTER, spooled, sweep
from storage.store import ObjectStore
from timestep.errors import NotFoundError, StorageError, UsageError

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import asyncio, os, sys
from pathlib import Path
from storage.spool import spooled
async def main(folder):
    async with spooled([b"half"], Path(folder)):
        os.kill(os.getpid(), 9)
asyncio.run(main(*sys.argv[1:]))
"""


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def age(folder: Path) -> None:
    past = time.time() - LOCKED_AFTER - 1
    for path in folder.iterdir():
        os.utime(path, (past, past))


async def test_what_a_killed_process_spooled_is_swept_and_what_a_living_one_does_is_not(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False)
    assert sweep(tmp_path) == 0  # too young to judge
    async with spooled(stream(b"whole"), tmp_path) as (path, _):
        age(tmp_path)
        assert sweep(tmp_path) == 1
        assert [*tmp_path.iterdir()] == [path]
    assert [*tmp_path.iterdir()] == []


async def test_a_stream_to_remote_storage_is_spooled_where_it_was_said(s3_url: str, tmp_path: Path) -> None:
    store = ObjectStore.open(s3_url, tmp_path / "spool")
    async with store.spool(stream(b"a", b"b")) as source:
        assert [path.read_bytes() for path in (tmp_path / "spool").iterdir()] == [b"ab"]
        await store.put("key", source)
    assert await store.get("key") == b"ab"
    assert [*(tmp_path / "spool").iterdir()] == []


async def test_a_folder_that_can_not_be_written_to_is_named(s3_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/spool"):
        await ObjectStore.open(s3_url, tmp_path / "file" / "spool").put("key", stream(b"a"))


async def test_a_stream_does_not_leave_the_store_by_a_link(local: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "store").mkdir(exist_ok=True)
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    for key in ("link/key", "../outside/key", str(tmp_path / "outside" / "key")):
        with pytest.raises(UsageError, match="can't be an object's key"):
            await local.put(key, stream(b"bytes"))
    assert [*(tmp_path / "outside").iterdir()] == []


async def test_parts_that_nobody_put_together_are_forgotten(s3_url: str) -> None:
    location, store = parse_url(s3_url), ObjectStore.open(s3_url)
    driver = location.connect()
    container = driver.get_container(location.container)
    for key in ("some/prefix/files/a", "some/prefix/other/b"):
        driver._initiate_multipart(container, key)

    def left() -> list[str]:
        return [upload.key for upload in driver.ex_iterate_multipart_uploads(container)]

    await store.sweep("files/", timedelta(days=36_500))
    assert len(left()) == 2  # their process may yet go on
    await store.sweep("files/")  # this server says of all that they began in 2010
    assert left() == ["some/prefix/other/b"]


async def test_a_part_of_an_object_is_given(store: ObjectStore) -> None:
    await store.put("key", bytes(range(250)) * 40_000)
    for start, end in ((0, 1), (249, 251), (3, 5_000_003), (9_999_999, 10_000_000), (0, 10_000_000)):
        came = b"".join([piece async for piece in store.stream_range("key", start, end)])
        assert came == (bytes(range(250)) * 40_000)[start:end]
    with pytest.raises(NotFoundError):
        await anext(store.stream_range("nothing", 0, 1))


async def test_an_object_cut_short_is_no_part(local: ObjectStore) -> None:
    await local.put("key", b"short")
    with pytest.raises(StorageError, match="5 of 9 bytes came"):
        async for _ in local.stream_range("key", 0, 9):
            pass
