"""Tokens of a real step on the real model, over HTTP while it runs: through the worker, the database, the server."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.conftest import Service
from tests.flows.conftest import Steps, steps
from tests.server.stage import Sent, listen, types
from timestep.database.engine import Database
from timestep.errors import NotFoundError
from timestep.steps import cancel

__all__ = ["steps"]

ASK: dict[str, Any] = {"input": "Tell me about the ocean.", "inference": {"max_tokens": 80, "temperature": 0}}


async def test_tokens_of_a_step_come_while_it_runs(service: Service, steps: Steps) -> None:
    run = await steps.start(**ASK)
    came: list[tuple[datetime, Sent]] = []
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("GET", f"{service.api}/steps/{run.id}/events") as response,
    ):
        assert response.status_code == 200
        async for event in listen(response):
            came.append((datetime.now(UTC), event))  # noqa: PERF401 - one by one, as they come
    events = [event for _, event in came]
    assert types(events)[:2] == ["step.started", "call.started"]
    assert types(events)[-2:] == ["call.finished", "step.finished"]
    deltas = [(at, event) for at, event in came if event.type == "output_text.delta"]
    ended = datetime.fromisoformat(events[-2].data["created_at"])
    assert sum(at < ended for at, _ in deltas) > 5  # not held back until the call had ended
    output = (await steps.output(await steps.finished(run))).output
    assert "".join(event.data["delta"] for _, event in deltas) == output == events[-1].data["output"]
    seen = httpx.get(f"{service.api}/steps/{run.id}").json()
    assert (seen["status"], seen["output"], seen["result"]["turns"]) == ("succeeded", output, 1)


async def test_a_step_that_fails_says_so_to_its_watchers(service: Service, steps: Steps) -> None:
    run = await steps.start(input="go", agent="nobody")
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("GET", f"{service.api}/steps/{run.id}/events") as response,
    ):
        events = [event async for event in listen(response)]
    assert events[-1].type == "step.finished" and events[-1].data["status"] == "failed"
    assert "No agent 'nobody'" in events[-1].data["error"]
    await steps.finished(run)  # Prefect knows it a moment later
    seen = httpx.get(f"{service.api}/steps/{run.id}").json()
    assert seen["status"] == "failed" and seen["error"] == events[-1].data["error"]


async def test_a_step_that_is_cancelled_ends_its_stream(service: Service, steps: Steps) -> None:
    run = await steps.start(input="go", agent="sleeper")
    database = Database(str(service.json("status")["urls"]["database"]))
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(timeout=60) as client,
        client.stream("GET", f"{service.api}/steps/{run.id}/events") as response,
    ):
        events: list[Sent] = []
        async for event in listen(response):
            events.append(event)
            if event.type == "call.started" and event.data["name"] == "slow":
                await cancel(steps.client, database, run.id)
    assert events[-1].type == "step.finished" and events[-1].data["status"] == "cancelled"
    with pytest.raises(NotFoundError):
        await cancel(steps.client, database, UUID(int=15))
    await database.close()
