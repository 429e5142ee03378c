"""As many requests wait for the model server as may; a step's always do."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.models.conftest import Server
from timestep.models.endpoints import STEP_HEADER

LIMIT = 2


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    return serve("timestep.models.server", MODEL="scripted", QUEUE_LIMIT=str(LIMIT))


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        yield client


def chat(text: str) -> dict[str, object]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}]}


async def test_one_too_many_is_told_to_come_back(http: httpx.AsyncClient) -> None:
    async def ask(text: str, **headers: str) -> httpx.Response:
        return await http.post("/v1/chat/completions", json=chat(text), headers=headers)

    async def until_waiting(count: int) -> None:
        async with asyncio.timeout(30):
            while (await http.get("/health")).json()["waiting"] != count:
                await asyncio.sleep(0.02)

    long = asyncio.create_task(ask("Please take 30 seconds."))
    asked = [asyncio.create_task(ask("Please take 0 seconds.")) for _ in range(LIMIT)]
    await until_waiting(LIMIT)
    refused = await ask("Hello")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    of_step = asyncio.create_task(ask("Hello", **{STEP_HEADER: "1"}))
    await until_waiting(LIMIT + 1)
    long.cancel()  # who leaves makes room
    assert {answer.status_code for answer in await asyncio.gather(*asked, of_step)} == {200}
    assert (await ask("Hello")).status_code == 200


async def test_who_leaves_while_waiting_waits_no_more(http: httpx.AsyncClient, server: Server) -> None:
    long = asyncio.create_task(http.post("/v1/chat/completions", json=chat("Please take 30 seconds.")))
    await asyncio.sleep(0.2)
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/chat/completions", json=chat("Hello"), timeout=0.5)
    async with asyncio.timeout(30):
        while (await http.get("/health")).json()["waiting"]:
            await asyncio.sleep(0.02)
    long.cancel()
