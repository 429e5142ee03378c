"""/metrics: what the server did and what it has to do, in Prometheus' text format.

Each app counts in a registry of its own. What others know, Prefect and the model server, is asked when it is read.
"""

import re
import time
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

router = APIRouter()

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
NO_ROUTE = "none"  # paths that lead nowhere are one, or anybody could make any number of series


class Metrics:
    """The counters of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "method", "status")
        self.requests = Counter(
            "timestep_http_requests", "Requests that were answered.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "timestep_http_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("route", "method"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.running = Gauge(
            "timestep_http_requests_in_flight", "Requests that are being answered.", registry=self.registry
        )
        self.tokens = Counter(
            "timestep_tokens",
            "Tokens of answers that said their usage, by model; direction is in or out.",
            ("model", "direction"),
            registry=self.registry,
        )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """What the server did since its start, for Prometheus."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


class Measured:
    """ASGI middleware: counts every request, also those that are refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it when its answer has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counters: Metrics = scope["app"].state.metrics
        begun, status = time.monotonic(), 500  # what an error that nobody answered becomes
        usage = _Usage()

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status == 200 and scope["method"] == "POST":
                usage.see(message.get("body", b""))
            await send(message)

        try:
            with counters.running.track_inprogress():
                await self._app(scope, receive, seen)
        finally:
            route, method = _template(scope), _method(scope)
            counters.requests.labels(route, method, str(status)).inc()
            counters.seconds.labels(route, method).observe(time.monotonic() - begun)
            usage.count(counters.tokens)


@dataclass
class _Usage:
    """Reads what an answer says of its usage, in its first and last bytes: there it stands, streamed or whole."""

    head: bytes = b""
    tail: bytes = field(default=b"", repr=False)

    def see(self, body: bytes) -> None:
        if len(self.head) < _KEPT:
            self.head += body[:_KEPT]
        self.tail = (self.tail + body[-_KEPT:])[-_KEPT:]

    def count(self, tokens: Counter) -> None:
        model = _MODEL.search(self.head) or _MODEL.search(self.tail)
        if model is None:
            return
        for direction, pattern in _TOKENS.items():
            if said := pattern.findall(self.tail):
                tokens.labels(model[1].decode(errors="replace"), direction).inc(int(said[-1]))


_KEPT = 4096  # bytes
# A quote within a text of the answer is escaped there: what matches is the answer's own.
_MODEL = re.compile(rb'(?<!\\)"model": ?"([^"\\]{1,200})"')
_TOKENS = {
    "in": re.compile(rb'(?<!\\)"(?:prompt|input)_tokens": ?(\d{1,12})\b'),
    "out": re.compile(rb'(?<!\\)"(?:completion|output)_tokens": ?(\d{1,12})\b'),
}


def _template(scope: Scope) -> str:
    """The route as it was declared, whatever its parameters: one series each."""
    route = scope.get("route")
    # FastAPI of today keeps a router within a router: the whole path is what its context says.
    within = scope.get("fastapi", {}).get("effective_route_context")
    return NO_ROUTE if route is None else str((within or route).path)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "other"


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
