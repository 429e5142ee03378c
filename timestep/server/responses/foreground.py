"""A response while its client waits: one chat completion, told as a response, streamed or whole."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from timestep.agents.responses.chat import TOO_LONG, Answer, BrokenChatError, chat_body
from timestep.agents.responses.events import Event, Narrator
from timestep.agents.responses.items import Item, shortened
from timestep.agents.responses.objects import ended, failed, skeleton
from timestep.agents.responses.request import ResponseRequest
from timestep.agents.responses.where import answering
from timestep.errors import TimestepError
from timestep.models.disconnect import ClientGone, unless_gone
from timestep.server import sse
from timestep.server.responses import streams

if TYPE_CHECKING:
    from timestep.server.upstream import Upstream

Keep = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Turn:
    """What is to be answered: the request, all items that the model is told, and who keeps the answer."""

    asked: ResponseRequest
    items: list[Item]
    store: bool
    keeps: bool  # it may be part of a conversation without being stored itself
    keep: Keep


async def answer(request: Request, turn: Turn) -> Response:
    """The response of the model, as the client wants it; a refusal of the model server as it comes."""
    chat = await _asked(request, turn)
    if not isinstance(chat, StreamingResponse) or chat.status_code != 200:
        return chat
    events = _events(turn, chat)
    if turn.asked.stream:
        return streams.live(request, events, chat.background)
    try:
        last = await unless_gone(request, _last(events))
    except ClientGone:
        return Response(status_code=499)
    response = last["response"]
    if response["status"] == "failed":
        raise BrokenChatError(response["error"]["message"])
    return JSONResponse(response)


async def _asked(request: Request, turn: Turn) -> Response:
    """The model's answer; where its context is too short, and may be, to what was said last."""
    upstream: Upstream = request.app.state.upstream
    endpoint, name = await answering(turn.asked.model, request.app.state.settings)
    items: list[Item] | None = turn.items
    while True:
        body = chat_body(turn.asked, items or []) | {"model": name}
        chat = await upstream.ask(request, endpoint, "/chat/completions", body)
        if turn.asked.truncation != "auto" or chat.status_code != 400 or not isinstance(chat, StreamingResponse):
            return chat
        refusal = b"".join([piece async for piece in _bytes(chat)])
        if chat.background is not None:
            await chat.background()
        if TOO_LONG.encode() not in refusal or (items := shortened(items or [])) is None:
            return Response(refusal, chat.status_code, media_type="application/json")


async def _events(turn: Turn, chat: StreamingResponse) -> AsyncGenerator[Event]:
    """The response's events; its last says how it ended, which is kept before it is told."""
    begun = skeleton(turn.asked, f"resp_{uuid4().hex}", time.time()) | {"store": turn.store}
    narrator = Narrator(begun)
    told = Answer(narrator)
    try:
        yield narrator.state("created")
        yield narrator.state()
        try:
            async with aclosing(told.events(sse.objects(_bytes(chat)))) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event
        except (BrokenChatError, json.JSONDecodeError) as error:
            narrator.response = failed({**begun, "output": narrator.output}, str(error))
        else:
            narrator.response = ended(
                begun, narrator.output, model=told.model, usage=told.usage, completed_at=time.time()
            )
        if turn.keeps:
            try:
                await turn.keep(narrator.response)
            except TimestepError as error:  # the database is away, or the conversation gone or changed
                if not turn.asked.stream:
                    raise
                narrator.response = failed(narrator.response, str(error))
        yield narrator.state()
    finally:
        if chat.background is not None:
            await chat.background()  # closes the connection to the model


async def _bytes(chat: StreamingResponse) -> AsyncIterator[Any]:
    """The answer's bytes. BrokenChatError: its connection broke."""
    import httpx

    try:
        async for piece in chat.body_iterator:
            yield piece
    except httpx.HTTPError as error:
        raise BrokenChatError(f"The model's answer broke off: {error or type(error).__name__}.") from error


async def _last(events: AsyncGenerator[Event]) -> Event:
    async with aclosing(events):
        async for event in events:
            last = event
    return last
