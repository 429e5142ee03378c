"""What the Prefect UI shows of a run under way: told once a second at most, and its last word always."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from flows import progress
from flows.progress import BatchProgress, progress_artifact


async def test_a_batchs_progress_is_told_at_a_bounded_rate_and_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, str]] = []
    made = uuid4()

    async def create(percent: float, *, key: str, description: str) -> UUID:
        assert key == "progress"
        told.append((percent, description))
        return made

    async def update(artifact: UUID, percent: float, *, description: str) -> None:
        assert artifact == made
        told.append((percent, description))

    monkeypatch.setattr(progress, "acreate_progress_artifact", create)
    monkeypatch.setattr(progress, "aupdate_progress_artifact", update)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.2)
    async with progress_artifact(BatchProgress(200), "progress") as batch:
        for number in range(200):
            batch.line(failed=number % 50 == 0)
            await asyncio.sleep(0.003)
    assert told[-1] == (100.0, "200 of 200 lines, 4 failed")
    assert 3 <= len(told) <= 20 and told == sorted(told) and told[0][0] < 50


async def test_a_prefect_server_that_is_away_harms_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[Any] = []

    class Logger:
        def warning(self, *said: Any) -> None:
            warned.append(said)

    async def away(*_: Any, **__: Any) -> UUID:
        raise OSError("no answer")

    monkeypatch.setattr(progress, "acreate_progress_artifact", away)
    monkeypatch.setattr(progress, "get_run_logger", Logger)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.01)
    async with progress_artifact(BatchProgress(20), "progress") as batch:
        for _ in range(20):
            batch.line(failed=False)
            await asyncio.sleep(0.01)
    assert len(warned) == 1  # not at each try
