"""What a step outlives: its own database or Prefect's server, away for longer than anybody waits for them.

That says nothing about the step: its process ends as crashed, the service starts it again when it can, and the limit
of crashes covers the rest. What a tool or a model meets, such as a server that is down, is the step's own failure.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from timestep.agents.record import lease
from timestep.errors import ServiceUnavailableError

LAST_SECONDS = 2.0
DATABASE, PREFECT = "database", "Prefect server"  # as ServiceUnavailableError calls them


def is_away(error: BaseException | None) -> bool:
    """Whether the error comes of our database or of Prefect's server being away, met by ourselves.

    An error that is not named so is none, whatever it looks like: a tool may speak to databases and servers too.
    """
    while error is not None:
        if isinstance(error, ServiceUnavailableError):
            return error.what in (DATABASE, PREFECT) and not error.by_tool
        error = error.__cause__
    return False


@contextmanager
def prefect_reached() -> Iterator[None]:
    """For what speaks to Prefect's server, and to no other: names it where it is away.

    Raises:
        ServiceUnavailableError: it can't be reached, or is in trouble (5xx).
    """
    try:
        yield
    except Exception as error:
        if is_prefects(error):
            raise ServiceUnavailableError(PREFECT, str(PREFECT_API_URL.value())) from error
        raise


def is_prefects(error: BaseException | None) -> bool:
    """Whether this, raised by Prefect's client or engine, says that Prefect's server is away."""
    while error is not None:
        if isinstance(error, httpx.TransportError):
            return True
        if isinstance(error, PrefectHTTPStatusError):
            return error.response.is_server_error
        error = error.__cause__
    return False


@asynccontextmanager
async def outlived(last: Callable[[], Coroutine[Any, Any, object]] | None = None) -> AsyncIterator[None]:
    """Where the block fails by :func:`is_away`, the process ends as crashed, with one line in the log.

    Before that it tries ``last``, for a moment.
    """
    try:
        yield
    except Exception as error:
        if is_away(error):
            with suppress(OSError, ValueError):  # a closed standard error must not keep it alive
                os.write(2, f"This process ends, and the service starts its flow run again: {error}\n".encode())
            if last is not None:
                with suppress(Exception):
                    await asyncio.wait_for(last(), LAST_SECONDS)
            lease.end_process(1)
        raise
