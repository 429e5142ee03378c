"""From generations to an HTTP response: whole or streamed, one choice after the other. Knows no model."""

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask

from timestep.models.disconnect import ClientGone, unless_gone
from timestep.models.engines import EnginePool, Run
from timestep.models.errors import error_body
from timestep.models.generation import Generation
from timestep.models.turn import Delta

logger = logging.getLogger(__name__)


class Shape(Protocol):
    """How an API spells generations; see :class:`timestep.models.completion.Completion`."""

    def whole(self) -> dict[str, Any]: ...
    def opening(self, index: int) -> str: ...
    def event(self, index: int, delta: Delta) -> str: ...
    def ending(self, index: int, include_usage: bool) -> str: ...
    def closing(self, include_usage: bool) -> str: ...


@dataclass
class Answer:
    """The ``generations``, each of which begins when the one before it has ended: one is ever waiting.

    The first waits from now on.
    """

    pool: EnginePool
    generations: Sequence[Generation]
    shape: Shape
    headers: dict[str, str]
    _run: Run = field(init=False)

    def __post_init__(self) -> None:
        self._run = self.pool.run(self.generations[0])

    async def whole(self, request: Request) -> Response:
        """The response, once all of it is there; nobody's, where the client has left."""
        try:
            await unless_gone(request, self._finish())
        except ClientGone:
            return Response(status_code=499)
        return JSONResponse(self.shape.whole(), headers=self.headers)

    def streamed(self, include_usage: bool) -> Response:
        """The response that is sent while it is generated."""
        # Closed in the background task: the body of a client that left at once is never begun, so can't close itself.
        done = BackgroundTask(self._close)
        events = self._events(include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=self.headers, background=done)

    async def _events(self, include_usage: bool) -> AsyncIterator[str]:
        """The stream's events; those that came up together are sent together."""
        try:
            for index in range(len(self.generations)):
                yield self.shape.opening(index)
                async with aclosing(self._runs(index)) as run:
                    async for deltas in run:
                        yield "".join(self.shape.event(index, delta) for delta in deltas)
                yield self.shape.ending(index, include_usage)
            yield self.shape.closing(include_usage)
        except Exception as error:  # the status is sent already: the client learns it from the stream
            logger.exception("a streamed completion failed")
            yield f"data: {json.dumps(error_body(error))}\n\n"

    async def _finish(self) -> None:
        for index in range(len(self.generations)):
            async with aclosing(self._runs(index)) as run:
                async for _ in run:
                    pass

    def _runs(self, index: int) -> Run:
        if index:
            self._run = self.pool.run(self.generations[index])
        return self._run

    async def _close(self) -> None:
        await self._run.aclose()
