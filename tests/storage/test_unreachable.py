"""Storage that fails for a moment is tried again; storage that stays away, or refuses, is named."""

import socket
import time
from pathlib import Path

import pytest

import storage.drivers
from storage.drivers import parse_url
from storage.store import BACKOFF, ObjectStore
from timestep.errors import StorageError

BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def at(endpoint: str) -> ObjectStore:
    return ObjectStore.open(f"s3://key:hidden@bucket?endpoint={endpoint}")


async def test_a_server_that_is_away_is_named_after_a_few_tries() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        await at(endpoint).put("a", b"1")
    assert time.monotonic() - started >= 0.8 * sum(BACKOFF)
    assert f"Storage 's3://bucket?endpoint={endpoint}': object 'a': " in str(caught.value)
    assert "refused" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_busy_server_is_tried_again(counting_server: type) -> None:
    server = counting_server(lambda n: EMPTY if n > 2 else BUSY)
    store = at(await server.start())
    assert (await store.stat("a")).size == 0
    assert server.connections > 3
    await server.stop()


async def test_a_server_that_stays_busy_is_named(counting_server: type) -> None:
    server = counting_server(lambda n: BUSY)
    with pytest.raises(StorageError, match="503"):
        await at(await server.start()).get("a")
    assert server.connections == len(BACKOFF) + 1
    await server.stop()


async def test_refused_credentials_are_not_tried_again(counting_server: type) -> None:
    server = counting_server(lambda n: REFUSED)
    with pytest.raises(StorageError, match="credentials are refused"):
        await at(await server.start()).get("a")
    assert server.connections <= 2
    await server.stop()


async def test_a_silent_server_does_not_hang_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.drivers, "TIMEOUT", (0.3, 0.3))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(StorageError, match="timed out"):
            await at(f"http://127.0.0.1:{silent.getsockname()[1]}").put("a", b"1")
    assert time.monotonic() - started < 20


async def test_a_connection_cut_in_the_middle_of_an_object_is_tried_again(counting_server: type) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n"
    # HEAD of the bucket, HEAD of the object, GET cut after three bytes; and the same again, whole.
    server = counting_server(lambda n: head + (b"", b"", b"012", b"", b"", b"0123456789")[min(n, 6) - 1])
    assert await at(await server.start()).get("a") == b"0123456789"
    assert server.connections == 6
    await server.stop()


async def test_a_missing_bucket_is_named(s3_endpoint: str) -> None:
    store = ObjectStore.open(f"s3://k:s@absent-bucket?endpoint={s3_endpoint}")
    for attempt in (store.put("a", b"1"), store.get("a"), store.exists("a")):
        with pytest.raises(StorageError, match=r"absent-bucket.*no such container"):
            await attempt


async def test_the_store_is_back_when_the_server_is(s3_url: str) -> None:
    store = ObjectStore.open(s3_url)
    await store.put("a", b"1")
    for borrowed in store._idle:  # the server closed idle connections
        borrowed.driver.connection.connection.session.close()
    assert await store.get("a") == b"1"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="the folder can't be made"):
        ObjectStore.open(f"local://{tmp_path}/file/store")


def test_connections_have_timeouts() -> None:
    session = parse_url("s3://k:s@bucket?region=eu-central-1").connect().connection.connection.session
    assert session.send.keywords == {"timeout": storage.drivers.TIMEOUT}
