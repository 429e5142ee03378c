"""The server for other machines: its password, how it ends, what it survives."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the embedded PostgreSQL does not exist for Windows")

AWKWARD = 'it\'s "50%" \\ ünïque'


@dataclass
class Volume:
    """A folder for the data, and how the server on it is reached."""

    folder: Path
    port: int

    @property
    def data(self) -> Path:
        return self.folder / "pgdata"

    def environment(self, password: str | None, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TIMESTEP_", "PG"))}
        secret = {} if password is None else {"TIMESTEP_DATABASE_PASSWORD": password}
        place = {"PGDATA": str(self.data), "PGPORT": str(self.port)}
        return {**clean, **place, "TIMESTEP_DATABASE_SETTINGS": "listen_addresses=127.0.0.1", **secret, **more}

    def start(self, password: str | None, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.database_server"],
            env=self.environment(password, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    async def connect(self, password: str) -> asyncpg.Connection:
        deadline = time.monotonic() + 60
        while True:
            try:
                return await asyncpg.connect(
                    host="127.0.0.1", port=self.port, user="timestep", password=password, database="postgres"
                )
            except (OSError, asyncpg.CannotConnectNowError):
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def server(self) -> psutil.Process:
        return psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))


@pytest.fixture
def volume() -> Iterator[Volume]:
    folder = Path(tempfile.mkdtemp(prefix="tsv-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield Volume(folder, port)
    shutil.rmtree(folder)


@asynccontextmanager
async def running(volume: Volume, password: str, **more: str) -> AsyncIterator[subprocess.Popen[str]]:
    process = volume.start(password, **more)
    try:
        await (await volume.connect(password)).close()
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def test_the_password_is_the_one_of_the_last_start_whatever_is_in_it(volume: Volume) -> None:
    async with running(volume, "first"):
        connection = await volume.connect("first")
        await connection.execute("create extension vector; create table kept as select '[1,2]'::vector as value")
        assert await connection.fetchval("show max_connections") == "200"
        with pytest.raises(asyncpg.InvalidPasswordError):
            await volume.connect("another")
        await connection.close()
    async with running(volume, AWKWARD):
        connection = await volume.connect(AWKWARD)
        assert await connection.fetchval("select value <-> '[1,3]' from kept") == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await volume.connect("first")
        await connection.close()


async def test_it_ends_at_once_though_clients_are_connected(volume: Volume) -> None:
    async with running(volume, "secret") as process:
        clients = [await volume.connect("secret") for _ in range(3)]
        began = time.monotonic()
        process.terminate()
        output = process.communicate(timeout=30)[0]
        assert time.monotonic() - began < 5
        assert process.returncode == 0
        assert "database system is shut down" in output
        for client in clients:
            client.terminate()


async def test_what_was_written_outlives_a_kill_and_the_killed_server_says_so(volume: Volume) -> None:
    async with running(volume, "secret") as process:
        connection = await volume.connect("secret")
        await connection.execute("create table kept (value int)")
        await connection.execute("insert into kept values (7)")
        volume.server().kill()
        assert process.wait(30) == 128 + signal.SIGKILL
        connection.terminate()
    async with running(volume, "secret"):
        connection = await volume.connect("secret")
        assert await connection.fetchval("select value from kept") == 7
        await connection.close()


async def test_a_start_that_was_cut_and_rights_given_to_a_group_hold_nobody_up(volume: Volume) -> None:
    (volume.folder / "new-cut" / "data").mkdir(parents=True)
    async with running(volume, "secret"):
        assert not (volume.folder / "new-cut").exists()
    volume.data.chmod(0o2770)  # what a volume's fsGroup does
    async with running(volume, "secret"):
        assert volume.data.stat().st_mode & 0o7777 == 0o700


async def test_a_second_server_waits_for_the_end_of_the_first(volume: Volume) -> None:
    async with running(volume, "first"):
        second = volume.start("second")
        assert second.stdout is not None
        assert second.stdout.readline() == f"Another server uses '{volume.data}'. Waiting for its end.\n"
        first = volume.server().pid
        await (await volume.connect("first")).close()
    try:
        await (await volume.connect("second")).close()
        assert volume.server().pid != first
    finally:
        second.terminate()
        second.communicate(timeout=30)


async def test_settings_of_postgresql_by_the_environment(volume: Volume) -> None:
    settings = "listen_addresses=127.0.0.1 shared_buffers=32MB search_path='\"$user\", public'"
    async with running(volume, "secret", TIMESTEP_DATABASE_SETTINGS=settings):
        connection = await volume.connect("secret")
        shown = [await connection.fetchval(f"show {name}") for name in ("shared_buffers", "search_path")]
        assert shown == ["32MB", '"$user", public']
        await connection.close()


@pytest.mark.parametrize(
    ("password", "settings", "line"),
    [
        (None, "", "No password for the database. Set TIMESTEP_DATABASE_PASSWORD.\n"),
        ("secret\n", "", "TIMESTEP_DATABASE_PASSWORD holds a line break or another character that can't be typed.\n"),
        (
            *("secret", "shared_buffers"),
            "TIMESTEP_DATABASE_SETTINGS: 'shared_buffers' is not NAME=VALUE, such as shared_buffers=256MB.\n",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(volume: Volume, password: str | None, settings: str, line: str) -> None:
    process = volume.start(password, TIMESTEP_DATABASE_SETTINGS=settings)
    assert (process.communicate(timeout=60)[0], process.returncode) == (line, 78)
    assert not volume.data.exists()


async def test_damaged_data_are_named_and_no_line_holds_the_password(volume: Volume) -> None:
    async with running(volume, "first"):
        pass
    (volume.data / "PG_VERSION").write_text("9\n")
    process = volume.start("unspeakable")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert f"PostgreSQL can't use the data in '{volume.data}'" in output
    assert "unspeakable" not in output
