"""How long the record waits for a database that is away, and what that looks like: one rule for all who write."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg  # type: ignore[import-untyped]

from timestep.database.engine import Database
from timestep.errors import ServiceUnavailableError

T = TypeVar("T")

PATIENCE = 120.0  # seconds that a database may be away

# What a database raises that is away, or ending, or full, or not yet there again.
AWAY = (
    OSError,
    ServiceUnavailableError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalClientError,
)


async def patiently(
    database: Database,
    work: Callable[[], Awaitable[T]],
    *,
    patience: float = PATIENCE,
    pause: float = 0.25,
    is_away: Callable[[Exception], bool] = lambda error: isinstance(error, AWAY),
) -> T:
    """Do the work; again, after ``pause`` seconds each, while the database is away.

    Raises:
        ServiceUnavailableError: it stayed away for ``patience`` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        try:
            return await work()
        except Exception as error:
            if not is_away(error):
                raise
            if loop.time() > deadline:
                raise ServiceUnavailableError("database", database.shown) from error
        await asyncio.sleep(pause)
