"""Asks the service's own HTTP API, as patiently as only a batch can be."""

import asyncio
import json
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx

from timestep.batches.record import Answer
from timestep.settings import Settings

ANSWER_SECONDS = 1800.0  # for one answer; then the server counts as hanging
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
FAULTS = 5  # answers in a row that a server failed, until that is the answer
AWAY_SECONDS = 600.0  # for which something behind the server may be away (502, 503, 504), until that is the answer
TOO_MANY = 429


class Asker:
    """A client of the HTTP API. It knows what passes by itself: a server that restarts, one that has much to do."""

    def __init__(self, settings: Settings, connections: int) -> None:
        headers = {}
        if settings.service_key is not None:
            headers["authorization"] = f"Bearer {settings.service_key.get_secret_value()}"
        self._client = httpx.AsyncClient(
            base_url=settings.api,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=5, pool=None),
            limits=httpx.Limits(max_connections=connections),
            trust_env=False,
            verify=settings.api.startswith("https"),  # a context for TLS takes time, and mostly there is none
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> Answer:
        """The answer to a request: tried again while the server is away or busy, however long that takes."""
        return await self._patiently("POST", path, body)

    async def get(self, path: str) -> Answer:
        """The same for what is there."""
        return await self._patiently("GET", path, None)

    async def _patiently(self, method: str, path: str, body: dict[str, Any] | None) -> Answer:
        loop = asyncio.get_running_loop()
        pause, faults, away_since = FIRST_PAUSE, 0, None
        while True:
            wait = pause
            try:
                response = await self._client.request(method, path, json=body)
            except httpx.ReadTimeout:
                faults += 1
                if faults >= FAULTS:
                    return _no_answer()
            except httpx.TransportError:
                pass  # it is away: a batch has a day
            else:
                if response.status_code == TOO_MANY:
                    wait = _retry_after(response, pause)
                elif response.status_code < 500:
                    return _answer(response)
                elif response.status_code in (502, 503, 504):
                    away_since = away_since or loop.time()
                    if loop.time() > away_since + AWAY_SECONDS:
                        return _answer(response)
                else:
                    faults += 1
                    if faults >= FAULTS:
                        return _answer(response)
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)


def _answer(response: httpx.Response) -> Answer:
    request_id = response.headers.get("x-request-id") or f"req_{uuid4().hex}"
    try:
        # What no JSON can hold, as NaN, is nothing.
        body = json.loads(response.content, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        body = {"error": {"message": response.text[:1000], "type": "server_error", "param": None, "code": None}}
    return Answer(status=response.status_code, request_id=request_id, body=body)


def _no_answer() -> Answer:
    message = f"The server gave no answer within {ANSWER_SECONDS:.0f} s."
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": "timeout"}}
    return Answer(status=504, request_id=f"req_{uuid4().hex}", body=body)


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    try:
        return min(float(response.headers.get("retry-after", otherwise)), 60.0)
    except ValueError:  # a date: come back as after any fault
        return otherwise
