"""What only the local driver can get wrong: links, leftovers, a full disk, folders that come and go."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.local import ABANDONED_AFTER, TEMPORARY
from storage.store import ObjectStore
from timestep.errors import NotFoundError, StorageError, UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, local: ObjectStore) -> Path:
    """Where the local store keeps its objects."""
    return tmp_path / "store"


async def test_objects_are_plain_files(local: ObjectStore, folder: Path) -> None:
    await local.put("a/b.txt", b"hello")
    assert (folder / "a" / "b.txt").read_bytes() == b"hello"
    await local.delete("a/b.txt")
    assert not (folder / "a").exists()


async def test_links_lead_nowhere(local: ObjectStore, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    await local.put("inside", b"1")
    (folder / "folder").symlink_to(outside)
    (folder / "file").symlink_to(outside / "secret")
    for key in ("folder/secret", "file"):
        for attempt in (local.get(key), local.put(key, b"x"), local.delete(key), local.stat(key)):
            with pytest.raises(UsageError, match="symbolic link"):
                await attempt
    assert [found.key async for found in local.list()] == ["inside"]
    assert (outside / "secret").read_text() == "secret"


async def test_a_store_may_itself_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = ObjectStore.open(f"local://{tmp_path}/link/store")
    await store.put("a/b", b"1")
    assert await store.get("a/b") == b"1"


async def test_unfinished_writes_are_not_objects(local: ObjectStore, folder: Path) -> None:
    await local.put("a", b"1")
    (folder / TEMPORARY / "left").write_bytes(b"half")
    assert [found.key async for found in local.list()] == ["a"]
    for attempt in (local.get(f"{TEMPORARY}/left"), local.put(f"{TEMPORARY}/x", b"")):
        with pytest.raises(UsageError, match="unfinished writes"):
            await attempt


async def test_what_a_killed_writer_left_is_removed_later(local: ObjectStore, folder: Path) -> None:
    await local.put("a", b"1")
    old, young = folder / TEMPORARY / "old", folder / TEMPORARY / "young"
    for path in (old, young):
        path.write_bytes(b"half")
    past = time.time() - ABANDONED_AFTER - 60
    os.utime(old, (past, past))
    await ObjectStore.open(local.url).get("a")
    assert (old.exists(), young.exists()) == (False, True)


async def test_a_failing_source_leaves_the_old_object(local: ObjectStore, folder: Path) -> None:
    async def broken():  # type: ignore[no-untyped-def]
        yield b"new"
        raise RuntimeError("the source broke")

    await local.put("a", b"old")
    with pytest.raises(RuntimeError, match="the source broke"):
        await local.put("a", broken())
    assert await local.get("a") == b"old"


FULL = """
import asyncio, resource, sys
from storage.store import ObjectStore
from timestep.errors import StorageError
async def main(url):
    store = ObjectStore.open(url)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        await store.put("a", b"n" * (3 << 20))
    except StorageError as error:
        print(error)
asyncio.run(main(sys.argv[1]))
"""


async def test_a_file_that_finds_no_room_leaves_the_old_object(local: ObjectStore, folder: Path) -> None:
    await local.put("a", b"old")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FULL, local.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no space left for object 'a'" in done.stdout
    assert await local.get("a") == b"old"
    assert list((folder / TEMPORARY).iterdir()) == []


async def test_writers_and_deleters_of_one_folder_do_not_trip_each_other(local: ObjectStore) -> None:
    async def come_and_go(name: str) -> None:
        for _ in range(80):
            await local.put(f"shared/deep/{name}", b"1")
            await local.delete(f"shared/deep/{name}")

    await asyncio.gather(*(come_and_go(f"{i}") for i in range(12)))
    assert [found async for found in local.list()] == []


async def test_an_object_and_a_folder_of_one_name_are_refused(local: ObjectStore) -> None:
    await local.put("a/b", b"1")
    with pytest.raises(StorageError, match="object 'a': "):
        await local.put("a", b"2")
    with pytest.raises(StorageError, match="object 'a/b/c': "):
        await local.put("a/b/c", b"3")
    assert await local.get("a/b") == b"1"


async def test_files_of_others_do_not_break_a_listing(local: ObjectStore, folder: Path) -> None:
    await local.put("a", b"1")
    (folder / "back\\slash").write_text("not ours")
    assert [found.key async for found in local.list()] == ["a"]


async def test_a_folder_is_no_object(local: ObjectStore) -> None:
    await local.put("a/b", b"1")
    with pytest.raises(NotFoundError):
        await local.get("a")
    with pytest.raises(NotFoundError):
        await local.get("a/b/c")
