"""Who may ask, how much, and how large: pure ASGI, so that no stream is held up by it."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from timestep.server.metrics import Measured
from timestep.server.security.authentication import Authenticated
from timestep.server.security.limits import Limited
from timestep.settings import Settings


def install_security(app: FastAPI, settings: Settings) -> None:
    """Put the checks before every route. The last added is the first to be asked."""
    app.add_middleware(Limited, settings=settings)
    app.add_middleware(Authenticated, settings=settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"], max_age=600
        )
    app.add_middleware(Measured)
