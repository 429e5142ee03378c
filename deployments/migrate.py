"""The databases of a service in a cluster: `python -m deployments.migrate` makes and migrates them, `--wait` waits.

One job migrates, and every server and worker waits for it with `--wait`, which changes nothing. A database that is
newer than this code counts as ready, for both: so an older version can be put back, whose tables the newer one has
only added to.
"""

import argparse
import ast
import asyncio
import importlib.util
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from asyncpg import InterfaceError, PostgresError  # type: ignore[import-untyped]
from sqlalchemy.exc import DBAPIError

from deployments.program import exit_code
from timestep.database import engine
from timestep.database.engine import PREFECT, TIMESTEP, Database
from timestep.errors import ServiceUnavailableError, TimestepError, UsageError
from timestep.keys import Keys, Scope
from timestep.settings import Settings, load_settings

PATIENCE_SECONDS = 300.0  # for a database that is starting, and for the migrations of others
LOOK_SECONDS = 1.0
FIRST_KEY = "first"
NO_PRIVILEGE = "42501"
# Held while Prefect's tables are migrated, which it leaves to its callers.
LOCK = "select pg_advisory_xact_lock(7489271, 2)"
# When the server ends the session of a machine that is gone; its locks would else be held for hours. For sessions over
# TCP; one has its own patience (timestep/agents/record/lease.py).
LOST_CLIENTS = {"tcp_keepalives_idle": "10s", "tcp_keepalives_interval": "5s", "tcp_user_timeout": "30s"}
UNSET = "select name from pg_settings where name = any($1) and source = 'default'"

T = TypeVar("T")


class Standing(StrEnum):
    """How a database's migrations are to those of this code."""

    BEHIND = "is not migrated yet"
    READY = "is migrated"
    NEWER = "is newer than this version of Timestep, which leaves it as it is"


async def migrate(settings: Settings) -> None:
    """Make the two databases, migrate both, take in the first API key. Safe to repeat, and to do twice at once.

    Raises:
        TimestepError: the database did not come up in time.
        UsageError: it refuses this user, or what the user may do is not enough; or the settings can't be meant.
    """
    database = _database(settings)
    try:
        await patiently(database, database.create_missing)
        # Before the migrations, after which everybody connects.
        async with _turn(database):
            for name in (TIMESTEP, PREFECT):
                await _notice_lost_clients(database, name)
        if await _shown(database, TIMESTEP) is Standing.BEHIND:
            await database.migrate()
        # Before Prefect's migrations, which everybody waits for: an API without any key would not start.
        key = settings.first_api_key.get_secret_value().strip() if settings.first_api_key is not None else ""
        if key and await Keys(database).take_in(key, FIRST_KEY, [Scope.ADMIN]):
            _say(f"API key '{FIRST_KEY}' taken in.")
        async with _turn(database):
            if (standing := await _shown(database, PREFECT)) is not Standing.NEWER:
                await _migrate_prefect(database, behind=standing is Standing.BEHIND)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != NO_PRIVILEGE:
            raise
        said = str(error.orig).partition(": ")[2] or error.orig
        who = f"The user of '{database.shown}' may not migrate: {said}."
        raise UsageError(f"{who} Make it the owner of the databases '{PREFECT}' and '{TIMESTEP}'.") from error
    finally:
        await database.close()


async def wait(settings: Settings) -> None:
    """Return once both databases are at this code's migrations, or at newer ones. Raises as :func:`migrate`."""
    database = _database(settings)
    begun, said = time.monotonic(), ""
    for name in (TIMESTEP, PREFECT):
        look = partial(_standing, database, name)
        while (standing := await patiently(database, look)) is Standing.BEHIND:
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise TimestepError(f"Database '{name}' was not migrated within {PATIENCE_SECONDS:g} s.")
            if said != name:
                said = name
                _say(f"Database '{name}' {standing}: waiting for that.")
            await asyncio.sleep(LOOK_SECONDS)
        _say(f"Database '{name}' {standing}.")


async def patiently(database: Database, work: Callable[[], Awaitable[T]]) -> T:
    """The answer of a server that may be starting: asked for a while, and said once. TimestepError: it never came."""
    begun, said = time.monotonic(), False
    while True:
        try:
            return await work()
        except ServiceUnavailableError as error:
            why = f"{error.__cause__ or 'no answer'}"
            if time.monotonic() - begun > PATIENCE_SECONDS:
                waited = f"within {PATIENCE_SECONDS:g} s"
                raise TimestepError(f"No database answered at '{database.shown}' {waited}: {why}") from error
            if not said:
                said = True
                _say(f"No database answers at '{database.shown}' yet ({why}): waiting for it.")
        await asyncio.sleep(LOOK_SECONDS)


@cache
def revisions(folder: Path) -> tuple[set[str], set[str]]:
    """The migrations in a folder: the newest, and all.

    Read, not imported: Prefect's would load its whole server, in every pod that starts.
    """
    known: set[str] = set()
    before: set[str] = set()
    for path in folder.glob("*.py"):
        values = _constants(path)
        if "revision" in values:
            known |= values["revision"]
            before |= values.get("down_revision", set())
    return known - before, known


def _constants(path: Path) -> dict[str, set[str]]:
    """The module's own names with the strings in their values."""
    found: dict[str, set[str]] = {}
    for line in ast.parse(path.read_bytes()).body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            constants = [node.value for node in ast.walk(line.value) if isinstance(node, ast.Constant)]
            strings = {value for value in constants if isinstance(value, str)}
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            found |= {target.id: strings for target in targets if isinstance(target, ast.Name)}
    return found


def folder_of(name: str) -> Path:
    """Where the migrations of a database are."""
    if name == TIMESTEP:
        return Path(engine.__file__).with_name("migrations") / "versions"
    spec = importlib.util.find_spec("prefect")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("server") / "database" / "_migrations" / "versions" / "postgresql"


async def _standing(database: Database, name: str) -> Standing:
    newest, known = revisions(folder_of(name))
    at = await database.revisions(name)
    if at - known:
        return Standing.NEWER
    return Standing.READY if at == newest else Standing.BEHIND


async def _shown(database: Database, name: str) -> Standing:
    standing = await _standing(database, name)
    _say(f"Database '{name}' {standing}.")
    return standing


@asynccontextmanager
async def _turn(database: Database) -> AsyncIterator[None]:
    """Held by one process at a time, of all that use this server."""
    connection = await database.connect(timeout=engine.CONNECT_SECONDS)
    try:
        async with connection.transaction():
            await connection.execute("set local idle_in_transaction_session_timeout = 0")
            await connection.execute(LOCK)
            yield
    finally:
        connection.terminate()


async def _migrate_prefect(database: Database, *, behind: bool) -> None:
    """Prefect's tables, and the types of its blocks: servers that start together and write those fail."""
    # Prefect reads it when it is imported.
    os.environ.update(PREFECT_SERVER_DATABASE_CONNECTION_URL=database.prefect_url)
    from prefect.plugins import load_prefect_collections
    from prefect.server.database import provide_database_interface
    from prefect.server.models.block_registration import run_block_auto_registration

    prefect = provide_database_interface()
    if behind:
        await prefect.create_db()
    load_prefect_collections()
    async with await prefect.session() as session:
        await run_block_auto_registration(session=session)


async def _notice_lost_clients(database: Database, name: str) -> None:
    """Have this database's sessions end soon after their machine did. What somebody has set, anywhere, stays."""
    connection = None
    try:
        connection = await database.connect(name, timeout=engine.CONNECT_SECONDS)
        for (option,) in await connection.fetch(UNSET, list(LOST_CLIENTS)):
            await connection.execute(f"alter database {name} set {option} = '{LOST_CLIENTS[option]}'")
    except (PostgresError, InterfaceError, OSError, ServiceUnavailableError) as error:
        _say(f"Database '{name}' keeps its own patience with machines that are gone: {error}.")
    finally:
        if connection is not None:
            connection.terminate()


def _database(settings: Settings) -> Database:
    if not settings.database_url:
        raise UsageError("No database is named: set TIMESTEP_DATABASE_URL.")
    return Database(settings.database_url)


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; see the module."""
    parser = argparse.ArgumentParser(prog="migrate", description="Make and migrate the databases, or wait for that.")
    parser.add_argument("--wait", action="store_true", help="change nothing; return once both are migrated")
    waits = parser.parse_args(arguments).wait
    return exit_code((wait if waits else migrate)(load_settings()))


if __name__ == "__main__":
    sys.exit(main())
