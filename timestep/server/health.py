"""GET /health: whether this server runs and the model server answers it."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from timestep.errors import ServiceUnavailableError
from timestep.server.upstream import Upstream

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 where a completion could be served, 503 where the model server is away."""
    upstream: Upstream = request.app.state.upstream
    try:
        response = await upstream.get("/health")
    except ServiceUnavailableError as error:
        return JSONResponse({"status": "degraded", "model_server": str(error)}, 503)
    return JSONResponse({"status": "ok" if response.status_code == 200 else "degraded"}, response.status_code)
