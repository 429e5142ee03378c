"""Requests to models: passed on to the model server, or to the provider that the model's prefix names.

A name that the model server lists is the service's own; otherwise a provider's prefix counts, as it does in steps.
"""

import json
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from timestep.errors import NotFoundError, ServiceUnavailableError
from timestep.models import endpoints
from timestep.models.routing import PREFIX, is_file
from timestep.server.documented import errors, schema_of
from timestep.server.upstream import Upstream
from timestep.settings import Settings

_EVENTS = {"text/event-stream": {"schema": {"type": "string", "description": "Chunks of the answer, then [DONE]."}}}


async def infer(request: Request, path: str) -> Response:
    """The answer as it comes. ``path``: of the operation, below a provider's base URL."""
    upstream: Upstream = request.app.state.upstream
    settings: Settings = request.app.state.settings
    asked = _asked(await request.body())
    model = asked.get("model")
    if not isinstance(model, str):
        return await upstream.send(request)
    refuse_files(model)
    provider = None if model.startswith(PREFIX) else endpoints.provider(model, settings)
    ours = "/" not in model or model.startswith(PREFIX)
    listed = set() if ours else {known.removeprefix(PREFIX) for known in await local_names(upstream)}
    if ours or model in listed:
        return await upstream.send(request)
    if provider is None:
        raise NotFoundError("model", model, {*listed, *(f"{prefix}/…" for prefix in endpoints.listing(settings))})
    endpoint, name = provider
    return await upstream.ask(request, endpoint, path, asked | {"model": name})


async def local_names(upstream: Upstream) -> list[str]:
    """Every name that the model server lists. ServiceUnavailableError: it lists none."""
    listed = await upstream.get("/v1/models")
    if not listed.is_success:
        raise ServiceUnavailableError("model server", str(listed.url.copy_with(path="/")))
    return [model["id"] for model in listed.json()["data"]]


def refuse_files(model: str) -> None:
    """The model server takes paths and URLs from the service's own flows; a client out here names models only."""
    if is_file(model):
        raise NotFoundError("model", model)


def documented(body: type[BaseModel], answer: type[BaseModel], *, streams: bool = False) -> dict[str, Any]:
    """What the OpenAPI document says of an operation whose body the model server or the provider judges."""
    done: dict[str, Any] = {"model": answer, **({"content": _EVENTS} if streams else {})}
    return {"openapi_extra": schema_of(body), "responses": {200: done, **errors(404)}}


def _asked(body: bytes) -> dict[str, Any]:
    """The request's fields; what is no request is judged by the model server."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return asked if isinstance(asked, dict) else {}
