"""The events of a response as server-sent events: as they come, or once more."""

from collections.abc import AsyncGenerator

from fastapi import Request
from fastapi.responses import StreamingResponse

from timestep.agents.responses.events import Event, Narrator
from timestep.server import sse
from timestep.server.responses import lookup


async def again(request: Request, id: str, after: int | None) -> StreamingResponse:
    """The events behind the sequence number ``after``. Raises as :func:`.lookup.find`."""
    from timestep.server.responses import background

    found = await lookup.find(request, id)
    if background.is_step(id, found.response):
        return live(request, background.narrate(await request.app.state.housekeeper.records(), id, after))
    return live(request, _retold(found.response, -1 if after is None else after))


def live(request: Request, events: AsyncGenerator[Event]) -> StreamingResponse:
    """The events as they come, until the client leaves or the server does."""
    framed = sse.framed(events, request.app.state.housekeeper.leaving, sse.frame)
    return StreamingResponse(framed, headers=sse.HEADERS, media_type=sse.MEDIA_TYPE)


async def _retold(response: dict[str, object], after: int) -> AsyncGenerator[Event]:
    """Of a response that has its output: each item whole."""
    output: list[Event] = response["output"]  # type: ignore[assignment]
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    narrator = Narrator(begun)
    events = [narrator.state("created"), narrator.state()]
    for item in output:
        events += narrator.whole(item)
    narrator.response = response
    for event in [*events, narrator.state()]:
        if event["sequence_number"] > after:
            yield event
