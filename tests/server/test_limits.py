"""A request without progress ends: its body stops coming, or its answer does not begin. A model may take its time."""

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from timestep.server.security.limits import Limited
from timestep.settings import Settings

SETTINGS = Settings(request_timeout=0.05, max_body_bytes=10, max_file_bytes=20)


async def ask(
    app: Any, method: str, path: str, *pieces: bytes, whole: bool = True, headers: dict[str, str] | None = None
) -> list[Message]:
    """What is answered to a body of these pieces; one that isn't ``whole`` stops coming."""
    coming = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if whole:
        coming.append({"type": "http.request", "body": b"", "more_body": False})
    answered: list[Message] = []

    async def receive() -> Message:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    async def send(message: Message) -> None:
        answered.append(message)

    sent = headers or ({"transfer-encoding": "chunked"} if pieces or not whole else {})
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }
    async with asyncio.timeout(30):
        await Limited(app, SETTINGS)(scope, receive, send)
    return answered


def error(answered: list[Message]) -> tuple[int, str]:
    return answered[0]["status"], json.loads(answered[1]["body"])["error"]["code"]


async def reads(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body)(scope, receive, send)


async def thinks(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after more than the time that there is."""
    await Request(scope, receive).body()
    await asyncio.sleep(0.3)
    await PlainTextResponse("thought")(scope, receive, send)


async def streams(scope: Scope, receive: Receive, send: Send) -> None:
    async def pieces() -> Any:
        for _ in range(3):
            yield b"x"
            await asyncio.sleep(0.1)

    await StreamingResponse(pieces())(scope, receive, send)


@pytest.mark.parametrize("path", ["/v1/conversations", "/v1/chat/completions", "/v1/files"])
async def test_a_body_that_stops_coming_is_given_up(path: str) -> None:
    assert error(await ask(reads, "POST", path, b"ab", whole=False)) == (408, "request_timeout")
    assert error(await ask(reads, "POST", path, whole=False)) == (408, "request_timeout")


async def test_an_answer_that_does_not_begin_is_given_up() -> None:
    assert error(await ask(thinks, "GET", "/v1/files")) == (504, "timeout")
    assert error(await ask(thinks, "POST", "/v1/conversations", b"ab")) == (504, "timeout")


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/responses", "/v1/uploads/upload_1/complete", "/ap/v1/agent/tasks/1/steps"]
)
async def test_a_model_and_storage_take_their_time(path: str) -> None:
    for pieces in ((), (b"ab",)):
        assert (await ask(thinks, "POST", path, *pieces))[1]["body"] == b"thought"


async def test_a_stream_goes_on_as_long_as_it_likes() -> None:
    answered = await ask(streams, "GET", "/v1/steps/1/events")
    assert b"".join(message["body"] for message in answered[1:]) == b"xxx"


async def test_the_largest_body_is_taken_and_no_larger() -> None:
    assert (await ask(reads, "POST", "/v1/responses", b"12345", b"67890"))[1]["body"] == b"1234567890"
    assert error(await ask(reads, "POST", "/v1/responses", headers={"content-length": "11"})) == (413, "too_large")
    files = ("/v1/files", "/v1/uploads/upload_1/parts", "/ap/v1/agent/tasks/1/artifacts")
    for path in files:
        assert (await ask(reads, "POST", path, b"x" * 20))[0]["status"] == 200
        assert error(await ask(reads, "POST", path, headers={"content-length": "21"})) == (413, "too_large")
