"""POST /v1/chat/completions: one turn of a model, streamed or whole.

A name that the model server lists is the service's own; otherwise a provider's prefix counts, as it does in steps.
"""

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from timestep.models import endpoints
from timestep.models.routing import PREFIX
from timestep.server.models import refuse_files
from timestep.server.upstream import Upstream
from timestep.settings import Settings

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """The answer of the model server, or of the provider that the model's prefix names, as it comes."""
    upstream: Upstream = request.app.state.upstream
    settings: Settings = request.app.state.settings
    asked = _asked(await request.body())
    model = asked.get("model")
    if not isinstance(model, str):
        return await upstream.send(request)
    refuse_files(model)
    provider = None if model.startswith(PREFIX) else endpoints.provider(model, settings)
    if provider is None or model in await _listed(upstream):
        return await upstream.send(request)
    endpoint, name = provider
    return await upstream.ask(request, endpoint, "/chat/completions", asked | {"model": name})


def _asked(body: bytes) -> dict[str, Any]:
    """The request's fields; what is no request is judged by the model server."""
    try:
        asked = json.loads(body)
    except ValueError:
        return {}
    return asked if isinstance(asked, dict) else {}


async def _listed(upstream: Upstream) -> set[str]:
    models = (await upstream.get("/v1/models")).json()["data"]
    return {model["id"].removeprefix(PREFIX) for model in models}
