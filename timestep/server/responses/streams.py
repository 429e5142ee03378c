"""The events of a response as server-sent events: as they come, or once more."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from timestep.agents.responses.events import Event, Narrator
from timestep.errors import TimestepError
from timestep.server import sse
from timestep.server.responses import lookup

Leave = Callable[[], Awaitable[object]]


async def again(request: Request, id: str, after: int | None) -> StreamingResponse:
    """The events behind the sequence number ``after``. Raises as :func:`.lookup.find`."""
    from timestep.server.responses import background

    found = await lookup.find(request, id)
    if background.is_step(found.response):
        return live(request, background.narrate(await request.app.state.housekeeper.records(), id, after))
    return live(request, _retold(found.response, -1 if after is None else after))


def live(request: Request, events: AsyncGenerator[Event], left: Leave | None = None) -> StreamingResponse:
    """The events as they come, until the client leaves or the server does.

    ``left`` is called where it is the client that did, at most once.
    """
    leaving = request.app.state.housekeeper.leaving
    watched = _Watched(events, left, leaving)
    framed = sse.framed(watched.told(), leaving, sse.frame)
    # The body of a client that left at once is never begun, so can't close itself.
    done = BackgroundTask(watched.close)
    return StreamingResponse(framed, headers=sse.HEADERS, media_type=sse.MEDIA_TYPE, background=done)


class _Watched:
    """The events of a response with a client to hear them."""

    def __init__(self, events: AsyncGenerator[Event], left: Leave | None, leaving: asyncio.Event) -> None:
        self._events, self._left, self._leaving = events, left, leaving

    async def told(self) -> AsyncGenerator[Event]:
        """Each of them; where they can't be told on, an event that says why."""
        number = 0
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    yield event
                    number = event["sequence_number"]
            self._left = None
        except TimestepError as error:
            self._left = None
            # Numbered as the last that came: a client that comes back asks for what is behind it, and misses nothing.
            said = {"code": error.code, "message": str(error), "param": None}
            yield {"type": "error", "sequence_number": number, **said}
        finally:
            await self.close()

    async def close(self) -> None:
        """No more is told: before the end, and while the server stays, it is the client that left."""
        left, self._left = self._left, None
        if left is not None and not self._leaving.is_set():
            await left()


async def _retold(response: dict[str, object], after: int) -> AsyncGenerator[Event]:
    """Of a response that has its output: each item whole, and always its end.

    It has fewer events than were told while it was being made, so that ``after`` may be above all of them.
    """
    output: list[Event] = response["output"]  # type: ignore[assignment]
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    narrator = Narrator(begun)
    events = [narrator.state("created"), narrator.state()]
    for item in output:
        events += narrator.whole(item)
    for event in events:
        if event["sequence_number"] > after:
            yield event
    narrator.response = response
    last = narrator.state()
    yield {**last, "sequence_number": max(last["sequence_number"], after + 1)}
