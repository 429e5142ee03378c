"""Starts that differ: somebody's own PostgreSQL, a machine without fork, files with mistakes."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from deployments.local import down, status
from deployments.local import up as start_service
from deployments.postgres import EmbeddedPostgres, embedded_postgres
from tests.deployments.conftest import Instance, is_running, reach
from tests.deployments.test_postgres import running
from timestep.errors import ConflictError, TimestepError
from timestep.settings import Settings

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def external(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL server that is not the service's."""
    postgres = embedded_postgres(Settings(home=tmp_path))
    await postgres.prepare(print)
    async with running(postgres, tmp_path):
        yield postgres
    shutil.rmtree(postgres.socket_dir, ignore_errors=True)


async def test_ones_own_database_server_is_used_and_left_running(
    external: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Instance(database_url=external.url)
    try:
        state = await start_detached(service)
        assert "postgres" not in state.children
        connection = await asyncpg.connect(external.url)
        names = {row[0] for row in await connection.fetch("select datname from pg_database")}
        assert {"prefect", "timestep"} <= names
        with pytest.raises(ConflictError, match="already runs"):
            await start_service(service.settings)
        async with service.prefect() as client:
            await reach(client, await service.trigger(client, "nap", seconds=0), "Completed")
        children = [child.pid for child in state.children.values()]
        assert await down(service.settings)
        assert not any(is_running(pid or 0) for pid in children)
        assert status(service.settings) is None
        assert await connection.fetchval("select 1") == 1
        await connection.close()
        assert not (service.home / "postgres").exists()
    finally:
        await down(service.settings)
        shutil.rmtree(service.home)


async def start_detached(service: Instance):
    """`up(detach=True)` in this process; what it reports as ready."""
    ready = []
    assert await start_service(service.settings, detach=True, on_ready=ready.append) == 0
    (state,) = ready
    assert httpx.get(f"{state.urls.api}/health", trust_env=False).status_code == 200
    return state


async def test_an_agents_file_that_does_not_import_ends_the_start_in_one_line(tmp_path: Path) -> None:
    agents = tmp_path / "agents.py"
    agents.write_text("from agents import Agent\n\nAgent(nme='typo')\n")
    service = Instance(agents=[agents])
    try:
        with pytest.raises(TimestepError, match=f"^Agents file '{agents}', line 3: TypeError: .*'nme'") as error:
            await start_service(service.settings, detach=True)
        assert "\n" not in str(error.value)
        assert service.processes() == []
        assert status(service.settings) is None
    finally:
        shutil.rmtree(service.home)


async def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    service = Instance(database_url="postgresql://somebody:secret@127.0.0.1:9/postgres")
    try:
        with pytest.raises(TimestepError, match=r"127\.0\.0\.1:9") as error:
            await start_service(service.settings, detach=True)
        assert "secret" not in str(error.value)
    finally:
        await asyncio.to_thread(shutil.rmtree, service.home)
