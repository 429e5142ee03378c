"""/metrics: what the server did and what it has to do, in Prometheus' text format.

Each app counts in a registry of its own. What others know, Prefect and the model server, is asked when it is read.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from timestep.errors import TimestepError
from timestep.server.upstream import Upstream

logger = logging.getLogger(__name__)
router = APIRouter()

ASKED_SECONDS, PATIENCE_SECONDS = 5.0, 3.0
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
        self.steps = Gauge(
            "timestep_steps", "Steps by the state of their flow run.", ("state",), registry=self.registry
        )
        self.waiting = Gauge(
            "timestep_model_requests_waiting", "Generations that wait for the model server.", registry=self.registry
        )
        self.up = Gauge("timestep_up", "Whether a part of the service answers.", ("part",), registry=self.registry)
        self.asking, self.asked_until = asyncio.Lock(), 0.0


@router.get("/metrics", response_class=PlainTextResponse, summary="Read the metrics.", tags=["service"])
async def metrics(request: Request) -> Response:
    """What the server did since its start and what there is to do, in Prometheus' text format."""
    counters: Metrics = request.app.state.metrics
    async with counters.asking:  # others may ask often: the parts are asked every few seconds
        if time.monotonic() >= counters.asked_until:
            await asyncio.gather(
                _ask("prefect-server", counters.steps.clear, _count_steps(request.app, counters), counters),
                _ask("model-server", lambda: counters.waiting.set(0), _count_waiting(request.app, counters), counters),
            )
            counters.asked_until = time.monotonic() + ASKED_SECONDS
    return Response(generate_latest(counters.registry), media_type=CONTENT_TYPE_LATEST)


async def _ask(part: str, forget: Callable[[], None], asking: Coroutine[Any, Any, None], counters: Metrics) -> None:
    """Have a part say what it has to do; what one that is away said before is no longer so."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asking
    except (TimestepError, TimeoutError, httpx.HTTPError, ValueError) as error:
        logger.debug("%s has no metrics: %s", part, error)
        forget()
        counters.up.labels(part).set(0)
    else:
        counters.up.labels(part).set(1)


async def _count_steps(app: FastAPI, counters: Metrics) -> None:
    records = await app.state.housekeeper.records()
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    steps = FlowFilter(name=FlowFilterName(any_=["step"]))

    async def count(state: StateType) -> None:
        chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[state])))
        number = await records.client.count_flow_runs(flow_filter=steps, flow_run_filter=chosen)
        counters.steps.labels(state.value.lower()).set(number)

    await asyncio.gather(*map(count, StateType))


async def _count_waiting(app: FastAPI, counters: Metrics) -> None:
    upstream: Upstream = app.state.upstream
    counters.waiting.set((await upstream.get("/health")).json().get("waiting", 0))


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
    return NO_ROUTE if route is None else str(getattr(within or route, "path_format", route.path))


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "other"


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
