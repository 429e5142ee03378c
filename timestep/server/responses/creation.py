"""POST /v1/responses: where an answer comes from, and what was said before."""

from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from timestep.agents.responses.items import Item, complete
from timestep.agents.responses.objects import ENDED
from timestep.agents.responses.request import ResponseRequest, checked
from timestep.agents.responses.where import answering
from timestep.errors import NotFoundError, ParameterError, RunFailedError, ServiceUnavailableError
from timestep.models import endpoints
from timestep.models.disconnect import ClientGone, unless_gone
from timestep.server.agents import roster
from timestep.server.inference import refuse_files
from timestep.server.records import Housekeeper, Records
from timestep.server.responses import foreground, lookup, stored, streams
from timestep.server.responses.stored import Earlier
from timestep.server.upstream import Upstream


async def create(request: Request, body: dict[str, Any]) -> Response:
    """The answer to a request, which is checked first.

    Raises:
        ParameterError, NotSupportedError: what of the request can't be meant, or isn't implemented.
        NotFoundError: no such agent, response or conversation.
        ServiceUnavailableError: a part of the service is away.
    """
    asked = checked(body)
    refuse_files(asked.model)
    earlier = await _earlier(request, asked)
    items = _referred(complete(asked.input), earlier.items)
    if not earlier.items and not items:
        raise ParameterError("input", "is missing. Say what is to be answered.")
    if asked.background or asked.agent is not None:
        return await _by_step(request, asked, {**body, "input": items}, earlier)
    return await foreground.answer(request, await _turn(request, asked, earlier, items))


async def _turn(request: Request, asked: ResponseRequest, earlier: Earlier, items: list[Item]) -> foreground.Turn:
    housekeeper: Housekeeper = request.app.state.housekeeper
    # Without a database nothing is kept, unless the client insists: then it is told why it can't be.
    known = request.app.state.settings.database_url is not None
    store = asked.store is not False and (known or asked.store is True)
    keeps = store or asked.conversation_id is not None
    database = await housekeeper.database() if keeps else None

    async def keep(response: dict[str, Any]) -> None:
        if database is not None:
            await stored.save(database, asked, response, earlier, items)

    return foreground.Turn(asked, [*earlier.items, *items], store, keeps, keep)


async def _by_step(request: Request, asked: ResponseRequest, body: dict[str, Any], earlier: Earlier) -> Response:
    """Answered by a step, which goes on whatever becomes of this server; watched here unless in the background."""
    from timestep.server.responses import background

    if asked.agent is not None:
        names = [one.id for one in (await roster(request)).agents]
        if asked.agent not in names:
            raise NotFoundError("agent", asked.agent, names)
    elif (refusal := await _unknown(request, asked.model)) is not None:
        return refusal
    records = await request.app.state.housekeeper.records()
    begun = (await background.start(records, body, earlier)).response
    if asked.stream:
        leave = None if asked.background else partial(background.cancel, records, begun["id"])
        return streams.live(request, background.narrate(records, begun["id"], None), leave)
    if asked.background:
        return JSONResponse(begun)
    return await _waited(request, records, begun["id"])


async def _unknown(request: Request, model: str) -> Response | None:
    """What the model server says of a name that nobody has. Where it is away, a step waits for it."""
    with suppress(ServiceUnavailableError):
        endpoint, name = await answering(model, request.app.state.settings)
        if endpoint.base_url == endpoints.model_server(request.app.state.settings).base_url:
            upstream: Upstream = request.app.state.upstream
            found = await upstream.get(f"/v1/models/{quote(name)}")
            if found.status_code == 404:
                return JSONResponse(found.json(), 404)
    return None


async def _waited(request: Request, records: Records, id: str) -> Response:
    from timestep.server.responses import background

    try:
        response = (await unless_gone(request, background.ended(records, id))).response
    except ClientGone:
        if not request.app.state.housekeeper.leaving.is_set():
            await background.cancel(records, id)
        return Response(status_code=499)
    if response["status"] == "failed":
        raise RunFailedError(response["error"]["message"])
    return JSONResponse(response)


async def _earlier(request: Request, asked: ResponseRequest) -> Earlier:
    """What was said before: in the conversation, or by the responses that lead to this one."""
    if asked.conversation_id is not None:
        from timestep.agents.responses import conversations

        housekeeper: Housekeeper = request.app.state.housekeeper
        return Earlier(*await conversations.history(await housekeeper.database(), asked.conversation_id))
    if asked.previous_response_id is None:
        return Earlier([])
    before = await lookup.find(request, asked.previous_response_id)
    status = before.response["status"]
    if status not in ENDED:
        raise ParameterError("previous_response_id", f"names a response that is {status}. Wait for its end.")
    return Earlier([*before.items, *before.response["output"]])


def _referred(items: list[Item], earlier: list[Item]) -> list[Item]:
    """The items, with what is only referred to left out where it was said before."""
    known = {item["id"] for item in earlier}
    kept = []
    for index, item in enumerate(items):
        if item["type"] != "item_reference":
            kept.append(item)
        elif item["id"] not in known:
            raise ParameterError(f"input[{index}].id", f"names '{item['id']}', which was not said before.")
    return kept
