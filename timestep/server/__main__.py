"""``python -m timestep.server``: settings come from the environment."""

import logging
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from timestep.server.app import create_app
from timestep.settings import load_settings


class _Server(uvicorn.Server):
    """Ends the streams of events when it is told to stop: uvicorn waits for every answer, and those go on for hours."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if (housekeeper := getattr(self._app.state, "housekeeper", None)) is not None:
            housekeeper.leave()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("timestep").setLevel(logging.INFO)  # which steps were started again, and why
    settings = load_settings()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config, app)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(3)  # as uvicorn.run would


if __name__ == "__main__":
    main()
