"""/v1/responses: what a model, or an agent, answers; at once, or in the background as a step."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from openai.types.responses import Response as ResponseObject
from pydantic import BaseModel

from timestep.agents.responses.request import ResponseRequest
from timestep.errors import NotSupportedError, UsageError
from timestep.server.documented import errors, schema_of
from timestep.server.pages import After, Include, Limit, Order, Page
from timestep.server.refusals import known_query
from timestep.server.responses import creation, lookup, streams
from timestep.server.responses.bodies import json_object

router = APIRouter(prefix="/v1/responses", tags=["responses"], dependencies=[Depends(known_query)])

_STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "Events, where a stream is asked for."}}}
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": _STREAM}}


class DeletedResponse(BaseModel):
    """That a response is no more."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@router.post(
    "", summary="Create a response", responses=_EVENTS | errors(404, 409), openapi_extra=schema_of(ResponseRequest)
)
async def create(request: Request) -> ResponseObject:
    """The answer of a model or an agent, whole or as server-sent events; in the background, what is known so far."""
    return await creation.create(request, await json_object(request))  # type: ignore[return-value]


@router.get("/{response_id}", summary="Get a response", responses=_EVENTS | errors(404))
async def get(
    response_id: str,
    request: Request,
    stream: Annotated[bool, Query(description="Its events instead, from its first to its end.")] = False,
    starting_after: Annotated[int | None, Query(ge=0, description="Events behind that sequence number.")] = None,
    include: Include = None,
    include_obfuscation: Annotated[bool, Query(include_in_schema=False)] = False,
) -> ResponseObject:
    """The response as it stands. With ``stream`` its events, those that were told already included."""
    if include_obfuscation:
        raise NotSupportedError("include_obfuscation")
    if stream:
        return await streams.again(request, response_id, starting_after)  # type: ignore[return-value]
    return JSONResponse((await lookup.find(request, response_id)).response)  # type: ignore[return-value]


@router.delete("/{response_id}", summary="Delete a response", responses=errors(404, 409))
async def delete(response_id: str, request: Request) -> DeletedResponse:
    """Forget the response, and the trace and result of its step; one that has not ended is cancelled first."""
    await lookup.forget(request, response_id)
    return DeletedResponse(id=response_id)


@router.post("/{response_id}/cancel", summary="Cancel a response", responses=errors(404, 409))
async def cancel(response_id: str, request: Request) -> ResponseObject:
    """Have a response in the background stopped. One that has ended stays as it is."""
    from timestep.server.responses import background

    stored = await lookup.find(request, response_id)
    if not stored.response["background"]:
        raise UsageError(f"Response '{response_id}' was not made in the background, so it can't be cancelled.")
    records = await request.app.state.housekeeper.records()
    return JSONResponse((await background.cancel(records, response_id)).response)  # type: ignore[return-value]


@router.get("/{response_id}/input_items", summary="List a response's input items", responses=errors(404))
async def input_items(
    response_id: str,
    request: Request,
    limit: Limit = 20,
    after: After = None,
    order: Order = "desc",
    include: Include = None,
) -> Page[dict[str, object]]:
    """What the response answers, that of earlier responses included."""
    items = (await lookup.find(request, response_id)).items
    return lookup.paged(items, limit, after, order)
