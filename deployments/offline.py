"""The database of a home, whether a service runs on it or not: the embedded one is started for the moment."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fasteners

from deployments import instance, preflight
from deployments.environment import service_environment
from deployments.postgres import embedded_postgres
from deployments.state import load_state
from deployments.supervisor import Supervisor
from timestep.database.engine import Database
from timestep.errors import ConflictError
from timestep.settings import Settings

STOP_SECONDS = 8.0


@asynccontextmanager
async def database_of(settings: Settings) -> AsyncIterator[Database]:
    """Our database, with its tables.

    Raises:
        ConflictError: a service is just starting or ending on the home.
        ServiceUnavailableError: the database that is named can't be reached.
    """
    preflight.make_home(settings)
    state = load_state(settings)
    url = state.database if state is not None else settings.database_url
    if url:
        async with opened(url, migrated=state is not None and state.ready) as database:
            yield database
        return
    lock = fasteners.InterProcessLock(settings.run_dir / "lock")
    if not lock.acquire(blocking=False):
        raise ConflictError(f"A service is starting or ending on home '{settings.home}'. Try again in a moment.")
    postgres, supervisor = embedded_postgres(settings), Supervisor(settings.log_dir, lambda _: None)
    try:
        await postgres.prepare(lambda _: None)
        program = postgres.program(service_environment(settings, instance.new_mark(settings.home)))
        await supervisor.start(program).first_ready
        async with opened(postgres.url) as database:
            yield database
    finally:
        await supervisor.stop(["postgres"], STOP_SECONDS)
        lock.release()


@asynccontextmanager
async def opened(url: str, *, migrated: bool = False) -> AsyncIterator[Database]:
    """The database at ``url``, with its tables unless they are known to be there."""
    database = Database(url)
    try:
        if not migrated:
            await database.create_missing()
            await database.migrate()
        yield database
    finally:
        await database.close()
