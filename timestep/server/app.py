"""The public HTTP server's app: puts the groups of the API together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from timestep.models.errors import install_error_handlers
from timestep.server import (
    agent_protocol,
    agents,
    batches,
    chat,
    completions,
    conversations,
    embeddings,
    files,
    fine_tuning,
    health,
    metrics,
    models,
    page,
    responses,
    step_runs,
    steps,
    uploads,
)
from timestep.server.documented import EVERYWHERE, install_openapi
from timestep.server.records import Housekeeper
from timestep.server.security import install_security
from timestep.server.upstream import NoUpstream, Upstream
from timestep.settings import Settings

GROUPS = (
    *(page, health, metrics),
    *(models, chat, completions, embeddings, responses, conversations),
    *(files, uploads, batches, fine_tuning),
    *(step_runs, steps, agents, agent_protocol),
)


def create_app(settings: Settings) -> FastAPI:
    """The HTTP API over the model server that the settings name."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.settings = settings
        key = settings.service_key.get_secret_value() if settings.service_key else None
        url = settings.model_server_url
        app.state.upstream = Upstream(url, key) if url else NoUpstream()
        app.state.housekeeper = Housekeeper(settings)
        app.state.metrics = metrics.Metrics()
        yield
        await app.state.housekeeper.close()
        await app.state.upstream.close()

    # The page at /docs is ours: FastAPI's fetches its script from elsewhere.
    app = FastAPI(title="Timestep", lifespan=lifespan, docs_url=None, redoc_url=None)
    install_error_handlers(app)
    install_openapi(app)
    for group in GROUPS:
        app.include_router(group.router, responses=EVERYWHERE)
    install_security(app, settings)
    return app
