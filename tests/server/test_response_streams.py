"""Streams of responses as ASGI sees them: who has left, who comes back, and what is said where nothing more comes."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse

from timestep.agents.responses.conversations import ConversationChangedError
from timestep.agents.responses.events import Event
from timestep.agents.responses.request import checked
from timestep.errors import ServiceUnavailableError
from timestep.server.responses import foreground, streams


class Watcher:
    """A client, and the server that streams to it."""

    def __init__(self) -> None:
        self.leaving, self.gone = asyncio.Event(), asyncio.Event()
        self.sent: list[bytes] = []
        self.left = 0

    async def watch(self, events: AsyncGenerator[Event]) -> list[Any]:
        """The events that came, until the stream's end or the client's leaving."""
        state = SimpleNamespace(state=SimpleNamespace(housekeeper=SimpleNamespace(leaving=self.leaving)))
        scope = {"type": "http", "app": state, "asgi": {"spec_version": "2.3"}}
        await streams.live(Request(scope), events, self._leave)(scope, self._receive, self._send)
        return [json.loads(frame.split(b"data: ")[1]) for frame in self.sent if b"data: " in frame]

    async def _leave(self) -> None:
        self.left += 1

    async def _receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and self.gone.is_set():
            await asyncio.sleep(3600)  # the body is never begun
        self.sent.append(message.get("body", b""))


async def told(*numbers: int, then: Any = None) -> AsyncGenerator[Event]:
    for number in numbers:
        yield {"type": "x", "sequence_number": number}
    if then is not None:
        await then()


async def test_a_client_that_leaves_before_the_first_byte_has_left() -> None:
    watcher = Watcher()
    watcher.gone.set()
    assert await watcher.watch(told(0)) == [] and watcher.left == 1


async def test_a_client_that_leaves_in_the_middle_has_left_once() -> None:
    watcher = Watcher()

    async def leave() -> None:
        watcher.gone.set()
        await asyncio.sleep(3600)

    assert len(await watcher.watch(told(0, then=leave))) == 1 and watcher.left == 1


async def test_nobody_has_left_where_all_was_told_or_the_server_is_stopping() -> None:
    watcher = Watcher()
    assert len(await watcher.watch(told(0, 1))) == 2 and watcher.left == 0

    async def stop() -> None:
        watcher.leaving.set()
        await asyncio.sleep(3600)

    await watcher.watch(told(0, then=stop))
    assert watcher.left == 0


async def test_a_stream_that_cannot_go_on_says_why_and_is_asked_for_where_it_ended() -> None:
    async def fail() -> None:
        raise ServiceUnavailableError("database", "postgresql://nowhere")

    *_, last = await Watcher().watch(told(5, 6, then=fail))
    assert (last["type"], last["sequence_number"], last["code"]) == ("error", 6, "service_unavailable")
    assert "database" in last["message"]


async def test_an_answer_that_its_conversation_does_not_take_is_refused_or_told_to_have_failed() -> None:
    async def said() -> AsyncGenerator[bytes]:
        yield b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'

    async def keep(_: Any) -> None:
        raise ConversationChangedError("conv_1")

    def answered(*, stream: bool) -> AsyncGenerator[Event]:
        asked = checked({"model": "m", "input": "x", "stream": stream, "conversation": "conv_1"})
        turn = foreground.Turn(asked, [], True, True, keep)
        return foreground._events(turn, StreamingResponse(said()))

    with pytest.raises(ConversationChangedError, match="conv_1"):
        _ = [event async for event in answered(stream=False)]
    *_, last = [event async for event in answered(stream=True)]
    assert last["type"] == "response.failed" and "conv_1" in last["response"]["error"]["message"]
