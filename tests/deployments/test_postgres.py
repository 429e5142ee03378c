"""The embedded server: its folder, its socket, its user."""

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from deployments.postgres import SOCKET_PATH_LIMIT, EmbeddedPostgres, embedded_postgres
from deployments.supervisor import Program, Supervisor
from timestep.errors import TimestepError
from timestep.settings import Settings


@asynccontextmanager
async def running(postgres: EmbeddedPostgres, logs: Path) -> AsyncIterator[int]:
    supervisor = Supervisor(logs, print)
    program = Program(
        *("postgres", postgres.command, dict(os.environ), postgres.is_ready, postgres.data),
        stop_signal=signal.SIGINT,
        user=postgres.user,
        group=postgres.group,
    )
    child = supervisor.start(program)
    try:
        await child.first_ready
        yield child.state.pid or 0
    finally:
        await supervisor.stop(["postgres"], 10)


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tsp-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def test_data_outlives_a_restart_and_the_server_listens_on_no_network(home: Path) -> None:
    postgres = embedded_postgres(Settings(home=home))
    await postgres.prepare(print)
    async with running(postgres, home) as pid:
        connection = await asyncpg.connect(postgres.url)
        await connection.execute("create table kept as select 7 as value")
        await connection.execute("create extension vector")
        assert await connection.fetchval("select '[1,2]'::vector <-> '[1,3]'") == 1
        await connection.close()
        assert psutil.Process(pid).net_connections("inet") == []
    await postgres.prepare(print)
    async with running(postgres, home):
        connection = await asyncpg.connect(postgres.url)
        assert await connection.fetchval("select value from kept") == 7
        await connection.close()


async def test_a_folder_made_by_half_is_made_anew(home: Path) -> None:
    postgres = embedded_postgres(Settings(home=home))
    (postgres.data.parent / "new-interrupted" / "data").mkdir(parents=True)
    await postgres.prepare(print)
    async with running(postgres, home):
        pass


async def test_a_deep_home_gets_a_short_socket_folder(home: Path) -> None:
    deep = home.joinpath(*["a-rather-long-name"] * 6)
    deep.mkdir(parents=True)
    postgres = embedded_postgres(Settings(home=deep))
    assert len(os.fsencode(postgres.socket_dir)) <= SOCKET_PATH_LIMIT
    await postgres.prepare(print)
    try:
        async with running(postgres, home):
            await (await asyncpg.connect(postgres.url)).close()
    finally:
        shutil.rmtree(postgres.socket_dir)


@pytest.fixture
def lured(home: Path) -> Iterator[tuple[EmbeddedPostgres, Path]]:
    """A server whose socket folder lies in a shared place, and where somebody else may wait for it."""
    postgres = embedded_postgres(Settings(home=home.joinpath(*["a-rather-long-name"] * 6)))
    yield postgres, postgres.socket_dir
    if postgres.socket_dir.is_symlink():
        postgres.socket_dir.unlink()
    else:
        shutil.rmtree(postgres.socket_dir)


async def test_a_link_in_the_socket_folders_place_is_refused_and_what_it_names_untouched(
    lured: tuple[EmbeddedPostgres, Path], tmp_path: Path
) -> None:
    postgres, place = lured
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o755)
    before = precious.stat()
    place.symlink_to(precious)
    with pytest.raises(TimestepError, match=f"'{place}' is a link"):
        await postgres.prepare(print)
    after = precious.stat()
    assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can make another user's folder")
async def test_somebody_elses_socket_folder_is_refused(lured: tuple[EmbeddedPostgres, Path]) -> None:
    postgres, place = lured
    place.mkdir(mode=0o777)
    os.chown(place, 4242, 4242)
    with pytest.raises(TimestepError, match=f"'{place}' is a link, or belongs to another user"):
        await postgres.prepare(print)
    assert place.stat().st_uid == 4242


async def test_the_socket_folder_of_an_earlier_start_is_used_again(lured: tuple[EmbeddedPostgres, Path]) -> None:
    postgres, place = lured
    await postgres.prepare(print)
    before = place.stat()
    place.chmod(0o755)
    await postgres.prepare(print)
    assert (place.stat().st_ino, stat.S_IMODE(place.stat().st_mode)) == (before.st_ino, 0o700)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root hands the server to another user")
async def test_root_hands_the_server_to_an_unprivileged_user_that_may_pass_but_not_look(home: Path) -> None:
    home.chmod(0o700)
    lines: list[str] = []
    postgres = embedded_postgres(Settings(home=home / "inner"))
    await postgres.prepare(lines.append)
    async with running(postgres, home) as pid:
        assert psutil.Process(pid).uids().real == postgres.user != 0
    assert stat.S_IMODE(home.stat().st_mode) == 0o701
    assert any(str(home) in line for line in lines)
    assert stat.S_IMODE(postgres.data.stat().st_mode) == 0o700
