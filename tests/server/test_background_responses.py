"""Responses that are steps: which steps are any, and how long one waits for them."""

import asyncio
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from fastapi import Request

from timestep import steps
from timestep.agents import respond
from timestep.agents.record.events import Event
from timestep.errors import NotFoundError, RunFailedError, ServiceUnavailableError
from timestep.server.responses import background, creation

ID = f"resp_{'0' * 32}"
RECORDS: Any = SimpleNamespace(client=None)


@pytest.mark.parametrize("tags", [[], [respond.TAG]])
async def test_a_step_whose_request_nobody_checked_is_no_response(
    monkeypatch: pytest.MonkeyPatch, tags: list[str]
) -> None:
    request = {"model": "m", "input": []}

    async def read(_: Any, id: UUID) -> Any:
        run = {"id": id, "parameters": {"inference": {"request": request}}, "tags": tags}
        return SimpleNamespace(**run, created=None, state=None, run_count=0)

    monkeypatch.setattr(steps, "read", read)
    if tags:
        assert (await background.load(RECORDS, ID)).response["id"] == ID
        return
    request["colour"] = "red"  # which would not be read again
    with pytest.raises(NotFoundError, match=ID):
        await background.load(RECORDS, ID)


async def test_an_agent_that_fails_in_the_foreground_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(*_: Any) -> Any:
        return SimpleNamespace(response={"status": "failed", "error": {"message": "Raise max_turns."}})

    async def receive() -> Any:
        await asyncio.sleep(3600)

    monkeypatch.setattr(background, "ended", ended)
    with pytest.raises(RunFailedError, match="max_turns"):
        await creation._waited(Request({"type": "http"}, receive), RECORDS, ID)


async def test_who_waits_for_a_response_bears_with_a_part_that_is_away_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "LONGEST_POLL_SECONDS", 0)
    answers: list[Any] = [ServiceUnavailableError("Prefect server", "http://nowhere")] * 2
    answers.append(SimpleNamespace(response={"status": "completed"}))

    async def load(*_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(background, "load", load)
    assert (await background.ended(RECORDS, ID)).response["status"] == "completed"
    monkeypatch.setattr(background, "AWAY_SECONDS", 0)
    answers += [ServiceUnavailableError("Prefect server", "http://nowhere")] * 100_000
    with pytest.raises(ServiceUnavailableError):
        await background.ended(RECORDS, ID)


@pytest.mark.parametrize(
    ("completed", "after", "told"),
    [
        (1, None, [0, 1, 2, 3]),  # seconds ago
        (1, 1, [2, 3]),
        (1, 3, []),  # who had all of it
        (1, 40, [41]),  # there were more events when it was told that number
        (7200, 3, [4]),  # or as many, of others
    ],
)
async def test_who_comes_back_to_a_stream_that_is_told_in_fewer_events_hears_its_end(
    monkeypatch: pytest.MonkeyPatch, completed: int, after: int | None, told: list[int]
) -> None:
    asked = {"inference": {"request": {"model": "m", "input": []}}}
    run = SimpleNamespace(id=UUID(int=0), parameters=asked, tags=[respond.TAG], created=None)

    async def read(*_: Any) -> Any:
        return run

    async def watch(*_: Any) -> AsyncGenerator[Event]:
        yield Event(1, "step.started", None, {}, datetime.now(UTC))

    async def ended(*_: Any) -> Any:
        at = time.time() - completed
        return SimpleNamespace(response={"status": "completed", "output": [], "completed_at": at})

    monkeypatch.setattr(steps, "read", read)
    monkeypatch.setattr(background, "ended", ended)
    records: Any = SimpleNamespace(client=None, feed=SimpleNamespace(watch=watch))
    events = [event async for event in background.narrate(records, ID, after)]
    assert [event["sequence_number"] for event in events] == told
    assert not told or events[-1]["type"] == "response.completed"
