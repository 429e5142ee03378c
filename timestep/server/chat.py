"""POST /v1/chat/completions: one turn of a model, streamed or whole."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import Response

from timestep.server.models import refuse_files
from timestep.server.upstream import Upstream

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """The model server's answer, as it comes."""
    upstream: Upstream = request.app.state.upstream
    refuse_files(_model(await request.body()))
    return await upstream.send(request)


def _model(body: bytes) -> str:
    """The model that a request names; what is no request is judged by the model server."""
    try:
        return str(json.loads(body)["model"])
    except (ValueError, KeyError, TypeError):
        return ""
