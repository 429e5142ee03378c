"""The HTTP server as one process: ``python -m timestep.server``, or ``timestep serve``."""

import asyncio
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from timestep.database.engine import Database
from timestep.errors import TimestepError, UsageError
from timestep.keys import check_listening
from timestep.server.app import create_app
from timestep.server.logs import log_discreetly
from timestep.settings import Settings, load_settings

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: a restart can't help


class _Server(uvicorn.Server):
    """Ends the streams of events when it is told to stop: uvicorn waits for every answer, and those go on for hours."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if (housekeeper := getattr(self._app.state, "housekeeper", None)) is not None:
            housekeeper.leave()


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UsageError: other machines would reach it, and there is no API key; or the settings can't be meant.
        ServiceUnavailableError: the database, which knows the keys, can't be reached.
    """
    log_discreetly(settings)
    asyncio.run(_check(settings))
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # uvicorn's lines go the way of all others
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config, app)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(3)  # as uvicorn.run would


async def _check(settings: Settings) -> None:
    if settings.is_private:
        return
    if settings.database_url is None:
        raise UsageError(f"Host '{settings.host}' needs API keys, and they a database: set TIMESTEP_DATABASE_URL.")
    database = Database(settings.database_url)
    try:
        await check_listening(settings, database)
    finally:
        await database.close()


def main() -> None:
    """``python -m timestep.server``: settings come from the environment."""
    try:
        serve(load_settings())
    except TimestepError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(EXIT_CONFIG if error.status < 500 else 1)


if __name__ == "__main__":
    main()
