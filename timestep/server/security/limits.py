"""How large a request may be and how long it may take to come, or to be answered."""

import asyncio
import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from timestep.errors import DeadlineError, SlowRequestError, TooLargeError
from timestep.server.security.refusal import refusal
from timestep.settings import Settings

_CARRIES_FILES = re.compile(r"/v1/files|/v1/uploads/[^/]+/parts|/ap/v1/agent/tasks/[^/]+/artifacts")
# A model or an agent answers, or storage takes a file in: that takes as long as it takes.
_UNHURRIED = re.compile(
    r"/v1/(chat/completions|completions|embeddings|responses|files|uploads/[^/]+/(parts|complete))"
    r"|/ap/v1/agent/tasks/[^/]+/(steps|artifacts)"
)


class _OversizedError(TooLargeError, HTTPException):
    """Also of the kind that FastAPI lets through while it reads a body; every other is to it a body it can't read."""

    def __init__(self, limit: int) -> None:
        HTTPException.__init__(self, TooLargeError.status)
        self.args = (f"The body is larger than {limit} bytes, which is the most that is taken here.",)

    __str__ = Exception.__str__


class Limited:
    """ASGI middleware: bodies of at most so many bytes, and no request without progress for too long."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, watched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope)
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if limit and declared.isdecimal() and int(declared) > limit:
            await refusal(_OversizedError(limit))(scope, receive, send)
            return
        watched = _Watched(receive, send, limit, self._settings.request_timeout)
        watched.unhurried = scope["method"] == "POST" and bool(_UNHURRIED.fullmatch(scope["path"]))
        has_body = "transfer-encoding" in headers or declared not in ("", "0")
        await watched.run(self._app, scope, has_body=has_body)

    def _limit(self, scope: Scope) -> int:
        """In bytes; 0 for any size."""
        carries = scope["method"] == "POST" and _CARRIES_FILES.fullmatch(scope["path"])
        return self._settings.max_file_bytes if carries else self._settings.max_body_bytes


class _Watched:
    """One request: what came of its body, and until when something more is expected."""

    unhurried = False

    def __init__(self, receive: Receive, send: Send, limit: int, seconds: float) -> None:
        self._receive, self._send = receive, send
        self._limit, self._seconds = limit, seconds
        self._bytes, self._complete = 0, False
        self._deadline = asyncio.timeout(seconds)

    async def run(self, app: ASGIApp, scope: Scope, *, has_body: bool) -> None:
        """Have it answered, or answer that it took too long."""
        try:
            async with self._deadline:
                if not has_body:
                    self._read_whole()
                await app(scope, self.receive, self.send)
        except TimeoutError:
            if not self._deadline.expired():
                raise
            error = DeadlineError(self._seconds) if self._complete else SlowRequestError(self._seconds)
            await refusal(error)(scope, self._receive, self._send)

    async def receive(self) -> Message:
        """The next piece of the body, counted."""
        message = await self._receive()
        if message["type"] == "http.request" and not self._complete:
            self._bytes += len(message.get("body", b""))
            if self._limit and self._bytes > self._limit:
                raise _OversizedError(self._limit)
            self._expect(self._seconds)
            if not message.get("more_body", False):
                self._read_whole()
        return message

    async def send(self, message: Message) -> None:
        """A piece of the answer: from its first one on, it may take its time."""
        self._expect(None)
        await self._send(message)

    def _read_whole(self) -> None:
        self._complete = True
        if self.unhurried:
            self._expect(None)

    def _expect(self, seconds: float | None) -> None:
        """Something more within so many seconds; None: whenever it comes."""
        if self._deadline.when() is not None and not self._deadline.expired():
            self._deadline.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)
