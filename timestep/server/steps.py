"""/v1/steps/{step}: a step as it stands, the decisions that it waits for, and what happens in it, live.

The events are server-sent events (HTML standard, section 9.2): a client that comes back with the id of the last one
it got, as every EventSource does, gets each of the others once, whichever server it comes to.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from timestep.agents.record.step_view import CallDecision, StepView
from timestep.agents.types import Mode
from timestep.errors import UsageError
from timestep.keys import Scope
from timestep.server import ids, sse
from timestep.server.documented import errors, json_body
from timestep.server.records import Housekeeper, Records
from timestep.server.security.scopes import demand

if TYPE_CHECKING:
    from timestep.agents.record.events import Event

router = APIRouter(prefix="/v1/steps", tags=["steps"])

RETRY_MILLISECONDS = 1000  # after which a client whose stream broke comes back
OPENING = f"retry: {RETRY_MILLISECONDS}\n: watching\n\n".encode()
HTTP = "the HTTP API"  # who decided, where the request doesn't say it
_DECISION = CallDecision.model_json_schema()
_VERDICTS = _DECISION.pop("$defs")["Verdict"]
_DECISION["properties"]["verdict"] = _VERDICTS
_BY = {"type": "string", "description": "Who decides, for the record."}
_SEVERAL = {
    "type": "object",
    "required": ["decisions"],
    "properties": {"decisions": {"type": "array", "items": _DECISION, "minItems": 1}, "by": _BY},
    "additionalProperties": False,
}
_ONE = {**_DECISION, "properties": {**_DECISION["properties"], "by": _BY}}
# Of each event; its other fields are of its type.
_EVENT = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "position": {"type": ["string", "null"], "description": "Where in the step: the call that it is about."},
        "created_at": {"type": "string", "format": "date-time"},
    },
}
_EVENTS = {"content": {"text/event-stream": {"schema": _EVENT}}}


@router.get("/{step}", operation_id="getStep", summary="Get a step.", responses=errors(404))
async def get_step(step: str, request: Request) -> StepView:
    """The step's status, what it waits for, and its output once it has one."""
    from timestep import steps

    records, run_id = await records_of(request, step)
    return await steps.view(records.client, records.database, run_id, records.storage_url)


@router.post(
    "/{step}/approvals",
    operation_id="decideStep",
    summary="Decide of calls that wait.",
    responses=errors(404, 409),
    openapi_extra=json_body({"anyOf": [_SEVERAL, _ONE]}),
)
async def decide(step: str, request: Request) -> StepView:
    """Decide of calls that wait; answers with the step as it stands then.

    The body is ``{"decisions": [decision, …], "by": "who"}``, or a single decision: ``{"call": id or position,
    "verdict": "approve" | "reject" | "answer" | "run_again" | "result" | "fail", "text": "…", "always": false,
    "digest": "of the call"}``. ``call`` may be left out while only one call waits.
    """
    from timestep import steps

    records, run_id = await touched(request, step, "approvals")
    body = _json_object(await request.body())
    by = body.pop("by", None) or HTTP
    if not isinstance(by, str):
        raise UsageError("'by': a text is expected, the name of who decides.")
    decisions = _decisions(body)
    await steps.decide(records.client, records.database, run_id, decisions, by)
    return await get_step(step, request)


@router.get(
    "/{step}/events",
    operation_id="watchStep",
    summary="Watch a step live.",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Server-sent events, to the step's end.", **_EVENTS},
        204: {"description": "The step has ended, and the client has had its last event."},
        **errors(404),
    },
)
async def events(
    step: str,
    request: Request,
    after: Annotated[str | None, Query()] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The step's events as server-sent events, from its first or from the one after ``Last-Event-ID``, to its end."""
    from timestep import steps
    from timestep.agents.record.event_feed import read_events
    from timestep.agents.record.events import FINISHED

    records, run_id = await records_of(request, step)
    since = _event_id(last_event_id or after or "0")
    run = await steps.read(records.client, run_id)
    if run.state is not None and run.state.is_final() and not run.state.is_crashed():
        # 204 tells an EventSource that there is nothing to come back for.
        had = await read_events(records.database, str(run_id), since - 1, 2)
        if len(had) == 1 and had[0].id == since and had[0].type == FINISHED:
            return Response(status_code=204)
    else:
        await read_events(records.database, str(run_id), since, 1)  # a database that is away is said before the stream

    async def ended() -> dict[str, Any] | None:
        return await steps.ended(records.client, run_id)

    housekeeper: Housekeeper = request.app.state.housekeeper
    happened = records.feed.watch(str(run_id), since, ended)
    stream = sse.framed(happened, housekeeper.leaving, _frame, OPENING)
    return StreamingResponse(stream, headers=sse.HEADERS, media_type=sse.MEDIA_TYPE)


def _frame(event: Event) -> bytes:
    data = {"type": event.type, "position": event.position, "created_at": event.created_at.isoformat(), **event.data}
    # JSON has no line breaks of its own; an event that no step wrote has no id to come back with.
    number = f"id: {event.id}\n" if event.id else ""
    return f"{number}event: {event.type}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _json_object(body: bytes) -> dict[str, Any]:
    """The request's body, whatever content type it claims: `curl -d` says that of a form."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError('The body is no JSON object, such as {"call": "ID", "verdict": "approve"}.')
    return value


def _decisions(body: dict[str, Any]) -> list[Any]:
    """The decisions of a request. UsageError says which field is wrong, and how."""
    from pydantic import ValidationError

    given = body.get("decisions", [body])
    if not isinstance(given, list) or not given:
        raise UsageError("'decisions': a list of at least one decision is expected.")
    try:
        return [CallDecision.model_validate(one) for one in given]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{first['msg'].rstrip('.')}."
        raise UsageError(f"'{where}': {message}" if where else message) from error


def _event_id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UsageError(f"'{text}' is no id of an event. Give the id of the last one you got, or none.")
    return int(text)


async def records_of(request: Request, step: str) -> tuple[Records, UUID]:
    """Where to look the step up. NotFoundError: no step has such an id."""
    run_id = step_id(step)
    housekeeper: Housekeeper = request.app.state.housekeeper
    return await housekeeper.records(), run_id


async def touched(request: Request, step: str, what: str) -> tuple[Records, UUID]:
    """As :func:`records_of`, for who changes what becomes of a step.

    Raises:
        NotFoundError: no step has such an id; what isn't a step, such as a batch, isn't changed here.
        PermissionDeniedError: the key's scopes don't cover what this step does.
    """
    from timestep import steps

    records, run_id = await records_of(request, step)
    run = await steps.read(records.client, run_id)
    demand(request, scope_of(run.parameters.get("mode")), f"POST /v1/steps/{run_id}/{what}")
    return records, run_id


def scope_of(mode: Any) -> Scope:
    """What a key must cover to start a step of this mode, or to change what becomes of it."""
    return Scope.TRAINING if mode == Mode.TRAINING else Scope.INFERENCE


def step_id(step: str) -> UUID:
    """The id of a step. NotFoundError: no step can have this one."""
    return UUID(ids.known_id("step", step))
