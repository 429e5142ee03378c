"""GET /health: whether this server runs and the model server answers it; GET /livez: whether it runs."""

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from timestep.errors import ServiceUnavailableError
from timestep.server.upstream import Upstream

router = APIRouter(tags=["service"])


class Health(BaseModel):
    """Whether a completion could be served."""

    status: Literal["ok", "degraded"]
    model_server: str | None = Field(None, description="Why the model server doesn't answer.")


@router.get(
    "/health",
    operation_id="getHealth",
    summary="See whether the service is ready.",
    response_model=Health,
    responses={503: {"model": Health, "description": "The model server is away."}},
)
async def health(request: Request) -> JSONResponse:
    """200 where a completion could be served, 503 where the model server is away."""
    upstream: Upstream = request.app.state.upstream
    try:
        response = await upstream.get("/health")
    except ServiceUnavailableError as error:
        return JSONResponse({"status": "degraded", "model_server": str(error)}, 503)
    return JSONResponse({"status": "ok" if response.status_code == 200 else "degraded"}, response.status_code)


@router.get(
    "/livez",
    operation_id="getLive",
    summary="See whether this server runs, whatever is behind it.",
    status_code=204,
    response_class=Response,
)
async def live() -> None:
    """For whoever restarts a server that hangs: one whose model server or database is away does not."""
