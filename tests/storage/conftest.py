"""Stores under test: the local driver, and a real S3 server (moto) in a process of its own."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.drivers import parse_url
from storage.store import ObjectStore


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a running S3 server on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3_url(s3_endpoint: str) -> str:
    """URL of an empty bucket, with a prefix in it."""
    bucket = f"bucket-{os.urandom(6).hex()}"
    url = f"s3://key:sec%2Fret@{bucket}/some/prefix?endpoint={s3_endpoint}&region=us-east-1"
    parse_url(url).connect().create_container(bucket)
    return url


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    """URL of an empty folder."""
    return f"local://{tmp_path / 'store'}"


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty store of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def store(store_url: str) -> ObjectStore:
    """An empty store of each kind."""
    return ObjectStore.open(store_url)


@pytest.fixture
def local(local_url: str) -> ObjectStore:
    """An empty local store."""
    return ObjectStore.open(local_url)


class CountingServer:
    """A TCP server that answers the n-th connection with ``answer(n)`` and counts connections."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self.connections, self._answer = 0, answer

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._answer(self.connections))
        await writer.drain()
        writer.close()

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()


@pytest.fixture
def counting_server() -> type[CountingServer]:
    """A server for scripted answers."""
    return CountingServer
