"""A Prefect progress artifact that follows the trainer, at most one update a second."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.logging import get_run_logger

from training.finetune import EpochProgress

SECONDS_BETWEEN_UPDATES = 1.0


class Progress:
    """What a training run says of itself, for the artifact and, line by line, for the run's log."""

    def __init__(self, epochs: int) -> None:
        self.percent, self.text = 0.0, ""
        self._epochs = epochs
        self._logger = get_run_logger()

    def say(self, line: str) -> None:
        """A short line when something slow begins or goes on."""
        # "building llama.cpp 17/300" is progress, not 300 lines of log.
        if line.rstrip("0123456789/") != self.text.rstrip("0123456789/"):
            self._logger.info(line)
        self.text = line

    def epoch(self, progress: EpochProgress) -> None:
        """A step of an epoch."""
        self.percent, self.text = _percent(progress, self._epochs), _text(progress, self._epochs)


@asynccontextmanager
async def progress_artifact(epochs: int) -> AsyncIterator[Progress]:
    """Yields what to tell; the last of it is always shown. A server that can't be told harms no training."""
    progress = Progress(epochs)
    ended = asyncio.Event()
    waiting = asyncio.create_task(ended.wait())
    publishing = asyncio.create_task(_publish(progress, ended, waiting))
    try:
        yield progress
    finally:
        ended.set()
        await publishing


async def _publish(progress: Progress, ended: asyncio.Event, waiting: asyncio.Task[Any]) -> None:
    artifact: UUID | None = None
    shown = (0.0, "")
    while True:
        last_round = ended.is_set()
        now = (progress.percent, progress.text)
        try:
            if now != shown and artifact is None:
                artifact = await acreate_progress_artifact(now[0], key="training", description=now[1])
            elif now != shown and artifact is not None:
                await aupdate_progress_artifact(artifact, now[0], description=now[1])
            shown = now
        except Exception as error:
            get_run_logger().warning("Progress could not be shown: %s", error)
        if last_round:
            return
        await asyncio.wait([waiting], timeout=SECONDS_BETWEEN_UPDATES)


def _percent(progress: EpochProgress, epochs: int) -> float:
    return 100 * (progress.epoch - 1 + progress.windows_done / max(progress.windows, 1)) / epochs


def _text(progress: EpochProgress, epochs: int) -> str:
    return (
        f"epoch {progress.epoch}/{epochs}, window {progress.windows_done}/{progress.windows}, "
        f"loss {progress.loss:.3f}, accuracy {progress.accuracy:.1%}, {progress.eta_seconds:.0f} s left"
    )
