"""POST /v1/chat/completions: one turn of a model, streamed or whole."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from timestep.server.upstream import Upstream

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """The model server's answer, as it comes."""
    upstream: Upstream = request.app.state.upstream
    return await upstream.send(request)
