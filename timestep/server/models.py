"""GET /v1/models and /v1/models/{model}: what can be asked for here."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from timestep.server.upstream import Upstream

router = APIRouter(prefix="/v1/models")


@router.get("")
@router.get("/{model:path}")
async def models(request: Request) -> Response:
    """The model server's answer: it alone knows what is promoted."""
    upstream: Upstream = request.app.state.upstream
    return await upstream.send(request)
