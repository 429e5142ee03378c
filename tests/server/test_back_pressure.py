"""One too many, at the public door: 429, and when to come back; the others are answered."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.models.conftest import Server, serve
from tests.server.stage import Stage, staged
from timestep.database.engine import Database
from timestep.server.starting import AT_ONCE, BACK_SECONDS

__all__ = ["serve"]

LIMIT = 2
ASKED: dict[str, dict[str, Any]] = {
    "/chat/completions": {"model": "scripted", "messages": [{"role": "user", "content": "Hello"}]},
    "/responses": {"model": "scripted", "input": "Hello", "store": False},
}


@pytest.fixture(scope="module")
def models(serve: Callable[..., Server]) -> Server:
    return serve("timestep.models.server", MODEL="scripted", QUEUE_LIMIT=str(LIMIT))


@pytest.fixture
async def http(serve: Callable[..., Server], models: Server) -> AsyncIterator[httpx.AsyncClient]:
    public = serve("timestep.server", MODEL="scripted", MODEL_SERVER_URL=models.url)
    async with httpx.AsyncClient(base_url=public.api, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def stage(postgres_url: str) -> Iterator[Stage]:
    """A Prefect server; nobody takes its runs."""
    with staged(postgres_url, "prefect") as stage:
        asyncio.run(Database(postgres_url).migrate())
        yield stage


def refused(answer: httpx.Response) -> int:
    """After how many seconds to come back."""
    assert answer.status_code == 429, answer.text
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    return int(answer.headers["retry-after"])


async def test_a_full_queue_of_the_model_is_said(http: httpx.AsyncClient, models: Server) -> None:
    async def waiting() -> int:
        return int((await http.get(f"{models.url}/health")).json()["waiting"])

    async with asyncio.timeout(120):
        slow = ASKED["/responses"] | {"input": "Please take 60 seconds."}
        long = [asyncio.create_task(http.post("/responses", json=slow)) for _ in range(1 + LIMIT)]
        while await waiting() != LIMIT:
            await asyncio.sleep(0.02)
        for path, body in ASKED.items():
            for stream in (False, True):
                assert refused(await http.post(path, json=body | {"stream": stream})) >= 1, path
        for task in long:
            task.cancel()
        while await waiting():
            await asyncio.sleep(0.02)
        for path, body in ASKED.items():
            assert (await http.post(path, json=body)).status_code == 200


async def test_too_many_starts_of_steps_are_said(serve: Callable[..., Server], stage: Stage) -> None:
    async with PrefectClient(api=stage.prefect_api) as client:
        flow = await client.create_flow_from_name("step")
        await client.create_deployment(flow, name="step", enforce_parameter_schema=False)
    server = serve("tests.server.impatient", DATABASE_URL=stage.database_url, PREFECT_API_URL=stage.prefect_api)
    engine = create_async_engine(Database(stage.database_url).prefect_url)
    async with httpx.AsyncClient(base_url=server.api, timeout=60) as http:
        async with engine.begin() as busy:
            await busy.execute(text("lock table flow_run in access exclusive mode"))  # no run is made meanwhile
            asked = [asyncio.create_task(http.post("/steps", json={"input": "go"})) for _ in range(AT_ONCE + 1)]
            (one,), others = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert refused(one.result()) == BACK_SECONDS
        assert {answer.status_code for answer in await asyncio.gather(*others)} == {201}
    await engine.dispose()
