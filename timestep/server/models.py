"""/v1/models: what can be asked for here, the service's own and its providers'; trained ones can be deleted."""

import asyncio
import re
import time
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from openai.types import Model, ModelDeleted
from pydantic import BaseModel

from timestep.errors import ConflictError, ServiceUnavailableError, UsageError
from timestep.models import endpoints
from timestep.models.endpoints import Endpoint
from timestep.models.routing import PREFIX
from timestep.server.agents import roster
from timestep.server.documented import errors
from timestep.server.fine_tuning.origins import refuse_needed
from timestep.server.inference import refuse_files
from timestep.server.refusals import known_query
from timestep.server.upstream import Upstream
from timestep.settings import Settings

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(known_query)])

KEPT_SECONDS = 60.0
_NAME = re.compile(r"[\w.-]+(@\d+)?")


class ModelList(BaseModel):
    """Every model that can be named."""

    object: Literal["list"] = "list"
    data: list[Model]


class Catalog:
    """The models that the providers list, by their names here. Kept for a minute; who doesn't answer lists nothing."""

    def __init__(self, settings: Settings, upstream: Upstream) -> None:
        self._endpoints, self._upstream = endpoints.listing(settings), upstream
        self._turn = asyncio.Lock()
        self._read: tuple[float, list[dict[str, Any]]] | None = None

    async def models(self) -> list[dict[str, Any]]:
        """Every model, in OpenAI's shape."""
        async with self._turn:
            if self._read is None or time.monotonic() - self._read[0] > KEPT_SECONDS:
                every = await asyncio.gather(*(self._of(*one) for one in self._endpoints.items()))
                self._read = time.monotonic(), [model for models in every for model in models]
            return self._read[1]

    async def _of(self, prefix: str, endpoint: Endpoint) -> list[dict[str, Any]]:
        try:
            found = (await self._upstream.look(endpoint, "/models"))["data"]
            return [_model(f"{prefix}/{one['id']}", one.get("created"), prefix) for one in found]
        except (ServiceUnavailableError, LookupError, TypeError, ValueError):  # away, or no list of models
            return []


@router.get("", operation_id="listModels", summary="List the models.", responses={200: {"model": ModelList}})
async def list_models(request: Request) -> Response:
    """The model server's, which alone knows what is trained, then the providers'."""
    upstream: Upstream = request.app.state.upstream
    ours = await upstream.get("/v1/models")
    if not ours.is_success:
        return JSONResponse(ours.json(), ours.status_code)
    return JSONResponse({**ours.json(), "data": [*ours.json()["data"], *await _catalog(request).models()]})


@router.get(
    "/{model:path}",
    operation_id="retrieveModel",
    summary="Get a model.",
    responses={200: {"model": Model}, **errors(404)},
)
async def get_model(model: str, request: Request) -> Response:
    """One model by name."""
    upstream: Upstream = request.app.state.upstream
    refuse_files(model)
    if _is_providers(model, request):
        known = {one["id"]: one for one in await _catalog(request).models()}
        if model in known:
            return JSONResponse(known[model])
    return await upstream.send(request)


@router.delete(
    "/{model:path}",
    operation_id="deleteModel",
    summary="Delete a trained model.",
    responses={200: {"model": ModelDeleted}, **errors(404, 409)},
)
async def delete_model(model: str, request: Request) -> Response:
    """A version that isn't the one its model serves, or a model that is no agent's own, with all of its versions.

    Not while an unfinished fine-tuning job starts from it.
    """
    upstream: Upstream = request.app.state.upstream
    refuse_files(model)
    name = model.removeprefix(PREFIX)
    if "@" not in name and name in {agent.id for agent in (await roster(request)).agents}:
        raise ConflictError(
            f"Model '{model}' is the one of agent '{name}'. Delete versions of it ('{PREFIX}{name}@1'), or take the "
            "agent out of its file first."
        )
    if _is_providers(model, request):
        raise UsageError(f"Model '{model}' is a provider's, and can't be deleted here.")
    has_versions = request.app.state.settings.database_url is not None
    if has_versions and _NAME.fullmatch(name):  # what can be no name, the model server alone refuses
        await refuse_needed(await request.app.state.housekeeper.records(), model)
    return await upstream.send(request)


def _is_providers(model: str, request: Request) -> bool:
    return model.partition("/")[0] in endpoints.listing(request.app.state.settings)


def _catalog(request: Request) -> Catalog:
    state = request.app.state
    if not hasattr(state, "catalog"):
        state.catalog = Catalog(state.settings, state.upstream)
    catalog: Catalog = state.catalog
    return catalog


def _model(name: str, created: Any, owner: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created if isinstance(created, int) else 0,
        "owned_by": owner,
    }
