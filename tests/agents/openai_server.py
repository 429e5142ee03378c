"""A real HTTP server that answers OpenAI's chat completions as it is told, one reply per request."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agents import OpenAIChatCompletionsModel
from openai import AsyncOpenAI


@dataclass(frozen=True)
class Reply:
    """One answer: words streamed or whole, or a status with an error; then, maybe, the stream or connection ends."""

    words: tuple[str, ...] = ("fine",)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    breaks: bool = False
    cut: bool = False  # ends in good order, in the middle
    seconds: float = 0.0


@dataclass
class OpenAIServer:
    """What it was asked, when, and what it will answer; the last reply is given for ever."""

    replies: list[Reply]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def model(self, name: str = "gpt-4o-mini") -> OpenAIChatCompletionsModel:
        """A model of this server, by a client that would retry by itself."""
        client = AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=2)
        return OpenAIChatCompletionsModel(model=name, openai_client=client)

    def reply(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def serving(*replies: Reply) -> Iterator[OpenAIServer]:
    """A server on a port of its own."""
    told = OpenAIServer(list(replies) or [Reply()])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.requests.append(body)
            told.times.append(time.monotonic())
            reply = told.reply()
            time.sleep(reply.seconds)
            with suppress(ConnectionError):  # a client whose time was up
                self.answer(reply, body)

        def answer(self, reply: Reply, body: dict[str, Any]) -> None:
            if reply.status != 200:
                self.send(reply.status, json.dumps({"error": reply.error}), reply.headers)
            elif body.get("stream"):
                self.stream(reply, bool((body.get("stream_options") or {}).get("include_usage")))
            else:
                self.send(200, json.dumps(whole(reply)), reply.headers)

        def send(self, status: int, text: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"content-type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def stream(self, reply: Reply, usage: bool) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for word in reply.words:
                self.chunk(delta({"content": word}))
            if reply.breaks:
                self.close_connection = True
                self.connection.close()
                return
            if reply.error is not None:
                self.chunk({"error": reply.error})
            elif not reply.cut:
                self.chunk(delta({}, "stop"))
                if usage:
                    self.chunk({**delta({}), "choices": [], "usage": USAGE})
                self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

        def chunk(self, data: dict[str, Any]) -> None:
            self.event(json.dumps(data))

        def event(self, text: str) -> None:
            data = f"data: {text}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


def delta(content: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": content, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


def whole(reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(reply.words)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": USAGE}
