"""The model server: one process per machine that holds the weights and answers OpenAI's chat completions."""

import argparse
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from storage.store import ObjectStore
from timestep.database.engine import Database
from timestep.models.completion import Completion
from timestep.models.disconnect import ClientGone, unless_gone
from timestep.models.engines import EnginePool
from timestep.models.errors import error_body, install_error_handlers
from timestep.models.generation import Generation
from timestep.models.registry import ModelRegistry
from timestep.models.request import ChatRequest
from timestep.models.routing import SERVED_HEADER, ModelRouter
from timestep.settings import Settings, load_settings

logger = logging.getLogger(__name__)
api = APIRouter()


def create_app(settings: Settings) -> FastAPI:
    """The model server's app. Without a database it serves base models only."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url) if settings.database_url else None
        registry = ModelRegistry(database) if database else None
        app.state.router = ModelRouter(settings, registry, ObjectStore.open(settings.storage))
        app.state.engines = EnginePool(settings.context_length, settings.cores)
        try:
            yield
        finally:
            app.state.engines.close()
            if database:
                await database.close()

    app = FastAPI(title="Timestep model server", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)
    app.include_router(api)
    return app


@api.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Ready, and which model files are in memory."""
    return {"status": "ok", "loaded": [path.name for path in request.app.state.engines.loaded]}


@api.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every model's name, in OpenAI's shape."""
    names = await request.app.state.router.names()
    return {"object": "list", "data": [_model(name) for name in names]}


@api.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    """One model: ``served`` is what answers for it now."""
    served = await request.app.state.router.resolve(name)
    return {**_model(name), "served": served.name}


@api.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """One turn of the assistant, whole or streamed."""
    router: ModelRouter = request.app.state.router
    pool: EnginePool = request.app.state.engines
    served = await router.resolve(body.model)
    engine = await pool.get(served.path)
    generation = engine.stream(body.messages, body.tools, **body.options())
    completion = Completion(served.name, generation)
    headers = {SERVED_HEADER: served.name}
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _events(pool, generation, completion, usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    try:
        await unless_gone(request, _finish(pool, generation))
    except ClientGone:
        return Response(status_code=499)
    return JSONResponse(completion.whole(), headers=headers)


async def _events(
    pool: EnginePool, generation: Generation, completion: Completion, include_usage: bool
) -> AsyncIterator[str]:
    """The stream's events; those that came up together are sent together."""
    yield completion.opening()
    try:
        async with aclosing(pool.run(generation)) as batches:
            async for deltas in batches:
                yield "".join(map(completion.event, deltas))
        yield completion.closing(include_usage)
    except Exception as error:  # the status is sent already: the client learns it from the stream
        logger.exception("a streamed completion failed")
        yield f"data: {json.dumps(error_body(error))}\n\n"


async def _finish(pool: EnginePool, generation: Generation) -> None:
    async with aclosing(pool.run(generation)) as batches:
        async for _ in batches:
            pass


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "timestep"}


def main() -> None:
    """``python -m timestep.models.server --port N``: settings come from the environment."""
    settings = load_settings()
    parser = argparse.ArgumentParser(description="Serve local models over OpenAI's chat completions API.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=settings.model_port)
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(settings),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
