"""GET /v1/models and /v1/models/{model}: what can be asked for here."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from timestep.errors import NotFoundError
from timestep.models.routing import is_file
from timestep.server.upstream import Upstream

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(request: Request) -> Response:
    """The model server's answer: it alone knows what is promoted."""
    upstream: Upstream = request.app.state.upstream
    return await upstream.send(request)


@router.get("/{model:path}")
async def get_model(model: str, request: Request) -> Response:
    """One model by name."""
    upstream: Upstream = request.app.state.upstream
    refuse_files(model)
    return await upstream.send(request)


def refuse_files(model: str) -> None:
    """The model server takes paths and URLs from the service's own flows; a client out here names models only."""
    if is_file(model):
        raise NotFoundError("model", model)
