"""/v1/steps and /v1/agents through a running service: steps are started, listed, cancelled and started again."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import Service
from tests.server.stage import eventually


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.api, timeout=60) as client:
        yield client


async def start(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post("/steps", json=body)
    assert response.status_code == 201, response.text
    return dict(response.json())


async def ended(http: httpx.AsyncClient, step: str, status: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    async def over() -> bool:
        seen.update((await http.get(f"/steps/{step}")).json())
        return bool(seen["ended"])

    await eventually(over, 60)
    assert seen["status"] == status, seen
    return seen


async def listed(http: httpx.AsyncClient, **chosen: Any) -> list[str]:
    response = await http.get("/steps", params=chosen)
    assert response.status_code == 200, response.text
    return [step["id"] for step in response.json()["data"]]


async def test_steps_are_started_and_listed(http: httpx.AsyncClient) -> None:
    session = f"s-{uuid4()}"
    first = await start(http, input="go", session_id=session)
    assert (first["object"], first["agent"], first["session_id"]) == ("step", "planner", session)
    assert (await ended(http, first["id"], "succeeded"))["output"] == "all done"
    # One model call is not enough for its plan.
    second = await start(http, input="go", agent="looper", max_turns=1, session_id=session)
    third = await start(http, input=[{"role": "user", "content": "go"}], agent="receiver", session_id=session)
    await ended(http, second["id"], "failed")
    await ended(http, third["id"], "succeeded")
    ids = [third["id"], second["id"], first["id"]]
    assert await listed(http, session_id=session) == ids
    assert await listed(http, session_id=session, order="asc") == ids[::-1]
    assert await listed(http, session_id=session, status="failed") == [second["id"]]
    assert await listed(http, session_id=session, agent="receiver") == [third["id"]]
    assert await listed(http, session_id=session, mode="training") == []
    page = (await http.get("/steps", params={"session_id": session, "limit": 2})).json()
    assert ([step["id"] for step in page["data"]], page["has_more"], page["last_id"]) == (ids[:2], True, ids[1])
    assert await listed(http, session_id=session, limit=2, after=page["last_id"]) == ids[2:]
    assert await listed(http, session_id=session, order="asc", after=ids[2]) == ids[1::-1]


async def test_a_request_that_is_sent_again_starts_one_step(http: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    body = {"input": "go", "agent": "clumsy"}
    first, again = await asyncio.gather(*(http.post("/steps", json=body, headers=key) for _ in range(2)))
    assert first.json()["id"] == again.json()["id"]
    other = await http.post("/steps", json={"input": "other", "agent": "clumsy"}, headers=key)
    assert (other.status_code, other.json()["error"]["param"]) == (400, "Idempotency-Key")
    await ended(http, first.json()["id"], "succeeded")


async def test_a_cancelled_step_is_started_again(http: httpx.AsyncClient, service: Service) -> None:
    step = (await start(http, input="go", agent="cleaner"))["id"]

    async def waits() -> bool:
        return bool((await http.get(f"/steps/{step}")).json()["status"] == "waiting_approval")

    await eventually(waits, 60)
    assert step in await listed(http, status="waiting_approval")
    assert step not in await listed(http, status="waiting_feedback")
    assert (await http.post(f"/steps/{step}/cancel")).json()["status"] == "cancelled"
    assert (await http.post(f"/steps/{step}/resume")).json()["status"] == "in_progress"
    await eventually(waits, 60)
    await http.post(f"/steps/{step}/cancel")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "input' is empty"),
        ({"input": 1}, "input"),
        ({"input": "go", "turns": 3}, "turns"),
        ({"input": "go", "max_turns": 0}, "max_turns"),
        ({"input": "go", "inference": {"temperature": 9}}, "inference.temperature'"),
        ({"input": "a\0b"}, "input"),
        # Stored, any of these would have Prefect fail to list its runs.
        ({"input": "go", "max_turns": 10**30}, "max_turns' holds a number"),
        ({"input": "go", "inference": {"model_timeout": 1e308}}, "inference' holds a number"),
        # Files of the server's own machine and storage are not for clients to name.
        ({"mode": "training", "training": {"dataset": "/etc/passwd"}}, "training.dataset' is '/etc/passwd'"),
        ({"mode": "training", "training": {"dataset": "files/file-1"}}, "training.dataset"),
        ({"mode": "training", "training": {"dataset": "file-/../../etc/passwd"}}, "training.dataset"),
        ({"mode": "training", "training": {"validation": "traces/2026"}}, "training.validation"),
        ({"mode": "training", "training": {"validation": "traces"}}, "training.validation"),
        ({"input": "go", "training": {"dataset": "/etc/passwd"}}, "training.dataset"),
        ({"input": [{"role": [[]] * 2, "deep": json.loads("[" * 200 + "]" * 200)}]}, "input' is nested"),
    ],
)
async def test_a_step_that_can_not_be_meant_is_refused(
    http: httpx.AsyncClient, body: dict[str, Any], named: str
) -> None:
    response = await http.post("/steps", json=body)
    assert response.status_code == 400
    assert f"'{named}" in response.json()["error"]["message"]


async def test_what_is_not_there_is_named(http: httpx.AsyncClient) -> None:
    unknown = await http.post("/steps", json={"input": "go", "agent": "planer"})
    assert (unknown.status_code, "Did you mean 'planner'" in unknown.text) == (404, True)
    for path in (f"/steps/{uuid4()}/cancel", f"/steps/{uuid4()}/resume", "/steps/nonsense/cancel"):
        assert (await http.post(path)).status_code == 404
    assert (await http.get("/steps", params={"after": str(uuid4())})).status_code == 404
    assert (await http.get("/steps", params={"before": "x"})).status_code == 400


async def test_agents_are_listed(http: httpx.AsyncClient) -> None:
    page = (await http.get("/agents")).json()
    agents = {agent["id"]: agent for agent in page["data"]}
    assert {"assistant", "planner", "sender", "pupil"} <= set(agents)
    assert agents["sender"]["handoffs"] == ["receiver"]
    assert (agents["planner"]["tools"], agents["planner"]["base"]) == (["remember"], None)
    assert agents["pupil"]["base"].endswith("tiny.gguf")
    one = (await http.get("/agents", params={"limit": 1})).json()
    following = (await http.get("/agents", params={"limit": 1, "after": one["last_id"]})).json()
    assert [one["last_id"], following["first_id"]] == sorted(agents)[:2]
    assert (await http.get("/agents/planner")).json() == agents["planner"]
    assert "Did you mean 'planner'" in (await http.get("/agents/planer")).text
