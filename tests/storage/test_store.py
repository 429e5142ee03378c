"""The contract of an object store, on every driver that can run here."""

import asyncio
import hashlib
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from storage.references import Reference
from storage.store import ObjectStore
from timestep.errors import IntegrityError, NotFoundError, UsageError

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


def pattern(size: int) -> bytes:
    """Bytes that differ at every place of a few megabytes."""
    return (b"".join(i.to_bytes(4, "big") for i in range(1 << 16)) * (size // (1 << 18) + 1))[:size]


async def test_what_was_put_is_what_is_got(store: ObjectStore) -> None:
    reference = await store.put("notes/a.txt", b"hello", "text/plain")
    assert reference == Reference(
        key="notes/a.txt", sha256=hashlib.sha256(b"hello").hexdigest(), size=5, content_type="text/plain"
    )
    assert await store.get(reference) == await store.get("notes/a.txt") == b"hello"


async def test_put_replaces(store: ObjectStore) -> None:
    await store.put("a", b"old and longer")
    await store.put("a", b"new")
    assert await store.get("a") == b"new"


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 5 * MIB + 1, 11 * MIB])
async def test_every_kind_of_data_of_every_size(store: ObjectStore, tmp_path: Path, size: int) -> None:
    data = pattern(size)
    path = tmp_path / "data"
    path.write_bytes(data)
    pieces = [data[i : i + 700_000] for i in range(0, size, 700_000)]

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    for kind, value in {"bytes": data, "path": path, "iterable": iter(pieces), "async": stream()}.items():
        reference = await store.put(kind, value)
        assert (reference.size, reference.sha256) == (size, hashlib.sha256(data).hexdigest()), kind
        assert await store.get(reference) == data, kind
        assert b"".join([piece async for piece in store.stream(reference)]) == data, kind
        assert (await store.download(reference, tmp_path / "new" / kind)).read_bytes() == data, kind
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["async", "bytes", "iterable", "path"]


async def test_content_lies_under_its_hash_and_is_sent_once(store: ObjectStore) -> None:
    sha256 = hashlib.sha256(b"weights").hexdigest()
    reference = await store.put_content(b"weights", prefix="models", suffix=".gguf")
    assert reference.key == f"models/{sha256[:2]}/{sha256}.gguf"
    await store.put(reference.key, b"WEIGHTS")  # of equal size: a second upload would put the bytes right
    assert await store.put_content([b"wei", b"ghts"], prefix="models", suffix=".gguf") == reference
    assert await store.get(reference.key) == b"WEIGHTS"


async def test_content_whose_object_was_cut_is_sent_again(store: ObjectStore) -> None:
    reference = await store.put_content(b"weights")
    await store.put(reference.key, b"wei")
    await store.put_content(b"weights")
    assert await store.get(reference) == b"weights"


@pytest.mark.parametrize("corrupted", [b"hell0", b"hell", b"hello!", b""])
async def test_a_corrupted_object_is_named(store: ObjectStore, tmp_path: Path, corrupted: bytes) -> None:
    reference = await store.put("kept/safe", b"hello")
    await store.put("kept/safe", corrupted)
    with pytest.raises(IntegrityError, match="'kept/safe' is corrupted"):
        await store.get(reference)
    with pytest.raises(IntegrityError, match="'kept/safe' is corrupted"):
        assert [piece async for piece in store.stream(reference)]
    with pytest.raises(IntegrityError, match="'kept/safe' is corrupted"):
        await store.download(reference, tmp_path / "file")
    assert not any("file" in path.name for path in tmp_path.iterdir())


async def test_a_missing_object_is_named(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No object 'a/b'"):
        await store.get("a/b")
    with pytest.raises(NotFoundError, match="No object 'a/b'"):
        await store.stat("a/b")
    with pytest.raises(NotFoundError, match="No object 'a/b'"):
        await store.delete("a/b")
    with pytest.raises(NotFoundError, match="No object 'a/b'"):
        await store.download("a/b", tmp_path / "file")
    with pytest.raises(NotFoundError, match="No object 'a/b'"):
        assert [piece async for piece in store.stream("a/b")]
    assert not await store.exists("a/b")
    with pytest.raises(NotFoundError, match="No file"):
        await store.put("a/b", tmp_path / "absent")


async def test_stat_and_delete(store: ObjectStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    await store.put("a/b/c", b"12345")
    stat = await store.stat("a/b/c")
    assert (stat.key, stat.size) == ("a/b/c", 5)
    assert stat.modified is not None
    assert before <= stat.modified <= datetime.now(UTC) + timedelta(seconds=2)
    await store.delete("a/b/c")
    assert not await store.exists("a/b/c")
    assert [found async for found in store.list()] == []


async def test_list_is_sorted_and_held_to_the_prefix(store: ObjectStore) -> None:
    keys = ["a-b/1", "a.txt", "a/2/x", "a/1", "a0", "b", "ä/z"]
    await asyncio.gather(*(store.put(key, key.encode()) for key in keys))
    everything = [found async for found in store.list()]
    assert [found.key for found in everything] == sorted(keys)
    assert [found.size for found in everything] == [len(key.encode()) for key in sorted(keys)]
    assert all(found.modified for found in everything)
    for prefix in ("a", "a/", "a/2", "a/2/x", "b", "c", "a-"):
        assert [found.key async for found in store.list(prefix)] == sorted(k for k in keys if k.startswith(prefix))


async def test_list_goes_on_after_a_servers_page(store: ObjectStore) -> None:
    for start in range(0, 1005, 67):
        await asyncio.gather(*(store.put(f"n/{i:04}", b"") for i in range(start, min(start + 67, 1005))))
    assert [found.key async for found in store.list("n/")] == [f"n/{i:04}" for i in range(1005)]


@pytest.mark.parametrize("key", ["ünï/日本.txt", "with space", "a?b#c&d=e", "100%", "a+b", "%2e%2e", "~x", "…"])
async def test_unusual_keys(store: ObjectStore, key: str) -> None:
    await store.put(key, key.encode())
    assert await store.get(key) == key.encode()
    assert [found.key async for found in store.list()] == [key]
    await store.delete(key)


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a\\b", "a\x00b", "k" * 2000]
)
async def test_impossible_keys_are_refused(store: ObjectStore, key: str) -> None:
    for attempt in (store.put(key, b""), store.get(key), store.stat(key), store.delete(key)):
        with pytest.raises(UsageError, match="can't be an object's key"):
            await attempt


async def test_many_at_once(store: ObjectStore) -> None:
    references = await asyncio.gather(*(store.put(f"many/{i}", pattern(i * 1000)) for i in range(40)))
    got = await asyncio.gather(*(store.get(reference) for reference in references))
    assert [len(data) for data in got] == [i * 1000 for i in range(40)]


async def test_a_stream_left_early_leaves_the_store_usable(store: ObjectStore) -> None:
    reference = await store.put("long", pattern(8 * MIB))
    stream = store.stream(reference)
    assert await anext(stream)
    await stream.aclose()
    assert (await store.get(reference))[:4] == pattern(4)


async def test_a_presigned_url_needs_no_credentials(store: ObjectStore) -> None:
    await store.put("shared/file name.txt", b"for you")
    url = await store.presigned_url("shared/file name.txt", timedelta(minutes=5))
    if store.url.startswith("local:"):
        assert url is None
        return
    assert url is not None
    assert "X-Amz-Expires=300" in url
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).content == b"for you"


async def test_two_stores_on_one_url_share_objects(store_url: str) -> None:
    await ObjectStore.open(store_url).put("a", b"1")
    assert await ObjectStore.open(store_url).get("a") == b"1"


async def test_a_store_travels_to_another_process_without_its_connections(store: ObjectStore) -> None:
    await store.put("a", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.url, await copy.get("a")) == (store.url, b"1")


def test_a_store_serves_one_event_loop_after_another(store: ObjectStore) -> None:
    asyncio.run(store.put("a", b"1"))
    assert asyncio.run(store.get("a")) == b"1"


WRITER = """
import asyncio, sys
from pathlib import Path
from storage.store import ObjectStore
async def main(url, *paths):
    store = ObjectStore.open(url)
    print("writing", flush=True)
    while True:
        for path in paths:
            await store.put("model.bin", Path(path))
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_writer_never_leaves_half_an_object(store: ObjectStore, store_url: str, tmp_path: Path) -> None:
    whole = {}
    for name in ("one", "two"):
        data = name.encode() * (8 * MIB)
        (tmp_path / name).write_bytes(data)
        whole[hashlib.sha256(data).hexdigest()] = name
    seen = 0
    for round_ in range(30):
        if seen and round_ >= 8:  # on a busy machine it takes longer until anything is written
            break
        command = [sys.executable, "-c", WRITER, store_url, str(tmp_path / "one"), str(tmp_path / "two")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            await asyncio.sleep(0.05 + 0.13 * round_)
            writer.send_signal(signal.SIGKILL)
        found = [found.key async for found in store.list()]
        assert found in ([], ["model.bin"])
        if found:
            seen += 1
            assert hashlib.sha256(await store.get("model.bin")).hexdigest() in whole
    assert seen, "no round lasted long enough to write anything: the test shows nothing"
