"""The model server: one process per machine that holds the weights and answers OpenAI's inference calls."""

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from storage.store import ObjectStore
from timestep.database.engine import Database
from timestep.errors import TimestepError
from timestep.models.answers import Answer, Shape
from timestep.models.completion import Completion
from timestep.models.embedding import Embedders
from timestep.models.endpoints import STEP_HEADER
from timestep.models.engines import Engine, EnginePool
from timestep.models.errors import install_error_handlers
from timestep.models.files import embedder_names, model_name
from timestep.models.generation import Generation
from timestep.models.guard import Guarded, is_local
from timestep.models.registry import ModelRegistry
from timestep.models.request import ChatRequest, CompletionRequest, EmbeddingRequest, GenerationRequest
from timestep.models.routing import PREFIX, SERVED_HEADER, ModelRouter
from timestep.models.text_completion import TextCompletion
from timestep.settings import Settings, load_settings

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: a restart can't help
GRACE_SECONDS = 3  # for what is under way, once told to stop
END_SECONDS = 5.0  # by then the process is gone
RETRY_SECONDS = 2.0  # between attempts to load a model that can't be had yet

api = APIRouter()


def create_app(settings: Settings, *, preload: bool = False) -> FastAPI:
    """The model server's app. Without a database it serves base models only.

    ``preload``: the model of agents that name none is loaded at once, while others are answered already.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url) if settings.database_url else None
        registry = ModelRegistry(database) if database else None
        app.state.settings = settings
        app.state.router = ModelRouter(settings, registry, ObjectStore.open(settings.storage))
        app.state.embedders = Embedders(settings)
        app.state.engines = EnginePool(settings.context_length, settings.cores, limit=settings.queue_limit)
        app.state.ready = False
        loading = asyncio.create_task(_load(app)) if preload else None
        try:
            yield
        finally:
            if loading is not None:
                loading.cancel()
            app.state.engines.close()
            app.state.embedders.close()
            if database:
                await database.close()

    app = FastAPI(title="Timestep model server", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)
    app.include_router(api)
    app.add_middleware(Guarded, service_key=settings.service_key)
    return app


@api.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Ready, which model files are in memory, how many generations wait, and whether one is under way."""
    pool: EnginePool = request.app.state.engines
    return {
        "status": "ok",
        "loaded": [path.name for path in pool.loaded],
        "waiting": pool.waiting,
        "running": pool.running,
    }


@api.get("/ready")
async def ready(request: Request) -> Response:
    """200 once the model of agents that name none has been loaded, which may be long after the start; else 503."""
    state = request.app.state
    if not state.ready:
        state.ready = bool(state.engines.loaded) and await _default_file(request.app) in state.engines.loaded
    if state.ready:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "loading"}, 503)


@api.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every model, in OpenAI's shape."""
    listed = await request.app.state.router.listed()
    return {"object": "list", "data": [_model(name, created) for name, created in listed]}


@api.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    """One model: ``served`` is what answers for it now."""
    router: ModelRouter = request.app.state.router
    bare = name.removeprefix(PREFIX)
    served = bare if bare in embedder_names(request.app.state.settings) else (await router.resolve(name)).name
    known = dict(await router.listed())
    return {**_model(name, known.get(name)), "served": served}


@api.delete("/v1/models/{name:path}")
async def delete_model(name: str, request: Request) -> dict[str, Any]:
    """Delete a trained version, or a model with all of its versions."""
    await request.app.state.router.delete(name)
    return {"id": name, "object": "model", "deleted": True}


@api.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """One turn of the assistant, whole or streamed."""

    def choices(engine: Engine) -> list[Generation]:
        return body.choices(engine.stream(body.messages, body.tools, **body.options()))

    return await _answer(body, request, choices, Completion)


@api.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """How texts go on, whole or streamed."""

    def choices(engine: Engine) -> list[Generation]:  # of each prompt
        echo, options = bool(body.echo), body.options()
        firsts = (engine.complete(prompt, echo=echo, **options) for prompt in body.prompt)
        return [generation for first in firsts for generation in body.choices(first)]

    def shape(model: str, generations: list[Generation]) -> TextCompletion:
        return TextCompletion(model, generations, len(body.prompt))

    return await _answer(body, request, choices, shape)


@api.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """The vectors of texts."""
    embedders: Embedders = request.app.state.embedders
    name = embedders.meant(body.model)
    found = await embedders.embed(name, body.input, body.dimensions)
    answer = found.wire(name, body.encoding_format or "float")
    return JSONResponse(answer, headers={SERVED_HEADER: name})


async def _answer(
    body: GenerationRequest,
    request: Request,
    choices: Callable[[Engine], list[Generation]],
    shape: Callable[[str, list[Generation]], Shape],
) -> Response:
    """The ``choices`` that an engine is to generate, spelled in a shape, whole or streamed."""
    router: ModelRouter = request.app.state.router
    pool: EnginePool = request.app.state.engines
    served = await router.resolve(body.model)
    with pool.admit(always=STEP_HEADER in request.headers):
        engine = await pool.get(served.path)
        # Rendering, tokenizing and a schema's grammar take their time: others are answered meanwhile.
        generations = await asyncio.to_thread(choices, engine)
        answer = Answer(pool, generations, shape(served.name, generations), {SERVED_HEADER: served.name})
    return answer.streamed(body.include_usage) if body.stream else await answer.whole(request)


async def _default_file(app: FastAPI) -> Path:
    router: ModelRouter = app.state.router
    return (await router.resolve(model_name(app.state.settings.model))).path


async def _load(app: FastAPI) -> None:
    """Have the default model in memory; what is in the way is said once, and tried again."""
    said = ""
    while not app.state.ready:
        try:
            await app.state.engines.get(await _default_file(app))
            app.state.ready = True
        except TimestepError as error:
            if str(error) != said:
                said = str(error)
                print(f"The model can't be loaded yet: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(RETRY_SECONDS)


def _model(name: str, created: datetime | None) -> dict[str, Any]:
    made = int(created.timestamp()) if created else 0
    return {"id": name, "object": "model", "created": made, "owned_by": "timestep"}


class _Server(uvicorn.Server):
    """Is gone soon after it is told to stop: a long prompt, or a model that is being loaded, can't be cut short."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        end = threading.Timer(END_SECONDS, os._exit, [0])
        end.daemon = True
        end.start()


def main() -> int:
    """``python -m timestep.models.server --port N``: settings come from the environment. The exit code."""
    settings = load_settings()
    parser = argparse.ArgumentParser(description="Serve local models over OpenAI's inference calls.")
    parser.add_argument("--host", default=settings.model_host)
    parser.add_argument("--port", type=int, default=settings.model_port)
    parser.add_argument("--preload", action="store_true", help="load the model of agents that name none at once")
    arguments = parser.parse_args()
    host: str = arguments.host
    if settings.service_key is None and not is_local(f"[{host}]" if ":" in host else host):
        why = f"Host '{host}' is reached by other machines, which need a key: set TIMESTEP_SERVICE_KEY."
        print(why, file=sys.stderr, flush=True)
        return EXIT_CONFIG
    config = uvicorn.Config(
        create_app(settings, preload=arguments.preload),
        host=host,
        port=arguments.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config)
    with suppress(KeyboardInterrupt):
        server.run()
    return 0 if server.started else 3  # as uvicorn.run would


if __name__ == "__main__":
    sys.exit(main())
