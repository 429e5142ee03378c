"""As many requests wait for the model server as may; a step's always do."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.models.conftest import SMOLLM2, Server
from timestep.models.endpoints import STEP_HEADER

LIMIT = 2


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    return serve("timestep.models.server", MODEL="scripted", QUEUE_LIMIT=str(LIMIT))


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        yield client


def chat(text: str) -> dict[str, object]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}]}


async def test_one_too_many_is_told_to_come_back(http: httpx.AsyncClient) -> None:
    async def ask(text: str, **headers: str) -> httpx.Response:
        return await http.post("/v1/chat/completions", json=chat(text), headers=headers)

    async def until_waiting(count: int) -> None:
        while (await http.get("/health")).json()["waiting"] != count:
            await asyncio.sleep(0.02)

    async with asyncio.timeout(120):
        long = [asyncio.create_task(ask("Please take 60 seconds.")) for _ in range(1 + LIMIT)]
        await until_waiting(LIMIT)  # whichever came first is under way
        refused = await ask("Hello")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        other = await http.post("/v1/chat/completions", json=chat("Hello") | {"model": SMOLLM2})
        assert other.status_code == 429
        assert (await http.get("/health")).json()["loaded"] == ["scripted"]  # nothing is loaded for who is refused
        of_step = asyncio.create_task(ask("Hello", **{STEP_HEADER: "1"}))
        await until_waiting(LIMIT + 1)
        for task in long:
            task.cancel()
        assert (await of_step).status_code == 200  # who leaves makes room
        assert (await ask("Hello")).status_code == 200
