"""Server-sent events (HTML standard, section 9.2), out of objects and back. Knows no API."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

import anyio

HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
MEDIA_TYPE = "text/event-stream"
HEARTBEAT_SECONDS = 10.0
CLOSE_SECONDS = 1.0  # of the server's end that a stream may hold up

Object = dict[str, Any]
T = TypeVar("T")


def frame(event: Object) -> bytes:
    """One event, named by its type."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


async def framed(
    source: AsyncGenerator[T], leaving: asyncio.Event, as_bytes: Callable[[T], bytes], opening: bytes = b""
) -> AsyncGenerator[bytes]:
    """The events of ``source`` as they come, a comment now and then while none does, until the server is leaving.

    Closes ``source`` whatever happens. ``opening`` is sent before all.
    """
    gone = asyncio.ensure_future(leaving.wait())
    following: asyncio.Future[T | None] | None = None
    try:
        if opening:
            yield opening
        while True:
            following = following or asyncio.ensure_future(_next(source))
            await asyncio.wait((following, gone), timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                event, following = following.result(), None
                if event is None:
                    return
                yield as_bytes(event)
            elif gone.done():
                return
            else:
                yield b": \n\n"
    finally:
        gone.cancel()
        with anyio.CancelScope(shield=True):
            # In a task of its own, which goes on where a query that is under way takes longer to be given up.
            await asyncio.wait([asyncio.create_task(_close(source, following))], timeout=CLOSE_SECONDS)


async def _next(source: AsyncGenerator[T]) -> T | None:
    return await anext(source, None)


async def _close(source: AsyncGenerator[T], following: asyncio.Future[T | None] | None) -> None:
    if following is not None:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await source.aclose()


async def objects(body: AsyncIterator[bytes | str | memoryview]) -> AsyncIterator[Object]:
    """The JSON objects of a stream's data, up to its end mark; comments and other fields don't count."""
    async for line in _lines(body):
        name, _, value = line.partition(b":")
        value = value.strip()
        if name == b"data" and value and value != b"[DONE]":
            found = json.loads(value)
            if isinstance(found, dict):
                yield found


async def _lines(body: AsyncIterator[bytes | str | memoryview]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in body:
        rest += piece.encode() if isinstance(piece, str) else bytes(piece)
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest
