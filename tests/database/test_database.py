"""Our database is made and migrated on a real PostgreSQL, by whoever comes first."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from timestep.database import engine as engine_module
from timestep.database.engine import Database
from timestep.database.models import Base, ModelRow
from timestep.errors import ConflictError, ServiceUnavailableError, UsageError

ROOT = Path(__file__).resolve().parents[2]
SET_UP = """
import asyncio, sys
from timestep.database.engine import Database
async def main(url):
    database = Database(url)
    await database.create_missing()
    await database.migrate()
    await database.close()
asyncio.run(main(sys.argv[1]))
"""


async def tables(url: str, name: str = "timestep") -> set[str]:
    connection = await asyncpg.connect(url, database=name)
    rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    await connection.close()
    return {row["tablename"] for row in rows}


async def test_processes_that_start_together_take_turns(empty_server: str) -> None:
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", SET_UP, empty_server, cwd=ROOT, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for process in started:
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    ours = set(Base.metadata.tables)
    assert await tables(empty_server) == {*ours, "alembic_version"}
    assert await tables(empty_server, "prefect") == set()


async def test_many_at_once_in_one_process(empty_server: str) -> None:
    databases = [Database(empty_server) for _ in range(8)]
    await asyncio.gather(*(one.create_missing() for one in databases))
    await asyncio.gather(*(one.migrate() for one in databases))
    await asyncio.gather(*(one.close() for one in databases))


async def test_again_keeps_what_is_there(database: Database) -> None:
    async with database.session() as session:
        session.add(ModelRow(name="assistant", base="smol"))
    await database.create_missing()
    await database.migrate()
    async with database.session() as session:
        assert await session.get(ModelRow, "assistant")


async def test_migrations_make_exactly_the_models_tables(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_session_is_one_transaction(database: Database) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        async with database.session() as session:
            session.add(ModelRow(name="half", base="smol"))
            await session.flush()
            raise RuntimeError("in the middle")
    async with database.session() as session:
        assert await session.get(ModelRow, "half") is None


async def test_a_newer_database_is_refused(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(ConflictError, match=r"newer than this Timestep.*9999"):
        await database.migrate()


async def test_a_server_that_is_away_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://user:hidden@127.0.0.1:{free.getsockname()[1]}"
    away = Database(url)

    async def use() -> None:
        async with away.session():
            pass

    for attempt in (away.create_missing(), away.migrate(), use()):
        with pytest.raises(ServiceUnavailableError, match="No database answers at 'postgresql") as caught:
            await attempt
        assert "hidden" not in str(caught.value)


async def test_an_error_of_the_callers_own_is_left_alone(database: Database) -> None:
    with pytest.raises(FileNotFoundError):
        async with database.session():
            raise FileNotFoundError("a file of the caller's")


async def test_connections_cut_by_the_server_are_made_again(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("select 1"))
    connection = await asyncpg.connect(database.timestep_url.replace("+asyncpg", ""))
    await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() "
                             "and datname = 'timestep'")  # fmt: skip
    await connection.close()
    async with database.session() as session:
        assert await session.scalar(text("select 1")) == 1


async def test_a_server_that_falls_silent_or_ends_is_away(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "COMMAND_SECONDS", 0.5)
    fresh = Database(database.timestep_url)
    for statement in ("select pg_sleep(20)", "select pg_terminate_backend(pg_backend_pid())"):
        with pytest.raises(ServiceUnavailableError, match="No database answers"):
            async with fresh.session() as session:
                await session.execute(text(statement))
    with pytest.raises(ProgrammingError):
        async with fresh.session() as session:
            await session.execute(text("select nothing"))
    async with fresh.session() as session:
        assert await session.scalar(text("select 1")) == 1
    await fresh.close()


async def test_a_statement_that_is_cancelled_says_nothing_of_the_server(database: Database) -> None:
    async def wait() -> None:
        async with database.session() as session:
            await session.execute(text("select pg_sleep(20)"))

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0.3)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_user_who_may_not_create_databases_is_told(empty_server: str) -> None:
    connection = await asyncpg.connect(empty_server)
    await connection.execute("drop role if exists plain")
    await connection.execute("create role plain login")
    await connection.close()
    with pytest.raises(UsageError, match="may not create the databases 'prefect' and 'timestep'"):
        await Database(empty_server.replace("postgres:@", "plain:@")).create_missing()


@pytest.mark.parametrize(
    ("url", "prefect"),
    [
        ("postgresql://u:p%40ss@db:5433/any", "postgresql+asyncpg://u:p%40ss@db:5433/prefect"),
        ("postgres://db", "postgresql+asyncpg://db/prefect"),
        ("postgresql+asyncpg://u@db/", "postgresql+asyncpg://u@db/prefect"),
        ("postgresql://db?sslmode=require", "postgresql+asyncpg://db/prefect?ssl=require"),
        ("postgresql://postgres:@/x?host=/tmp/pg", "postgresql+asyncpg://postgres:@/prefect?host=%2Ftmp%2Fpg"),
    ],
)
def test_urls_name_the_databases_on_the_server(url: str, prefect: str) -> None:
    assert Database(url).prefect_url == prefect
    assert Database(url).timestep_url == prefect.replace("prefect", "timestep")


@pytest.mark.parametrize("url", ["sqlite:///x", "nonsense", "", "mysql://u:hidden@db"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no PostgreSQL URL") as caught:
        Database(url)
    assert "hidden" not in str(caught.value)
