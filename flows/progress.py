"""How far a run has come: a Prefect progress artifact that follows it; of a training, the step's events as well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.logging import get_run_logger

from timestep.agents.record.events import Events

if TYPE_CHECKING:  # batches train nothing
    from training.finetune import EpochProgress

S = TypeVar("S", bound="Shown")

SECONDS_BETWEEN_UPDATES = 1.0
EVENTS = 100  # of an epoch's steps, at most


@dataclass
class Shown:
    """What the artifact is to show."""

    percent: float = 0.0
    text: str = ""


class BatchProgress(Shown):
    """How many of a batch's lines are done."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self._lines, self._done, self._failed = lines, 0, 0

    def line(self, *, failed: bool) -> None:
        """One more is done, also where it was on record already."""
        self._done, self._failed = self._done + 1, self._failed + failed
        self.percent = 100 * self._done / self._lines
        self.text = f"{self._done} of {self._lines} lines, {self._failed} failed"


class Progress(Shown):
    """What a training run says of itself, for the artifact and, line by line, for the run's log."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
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


class Told:
    """Hands on what a training run says to those who watch: the artifact, the log, and the step's events."""

    def __init__(self, events: Events, progress: Progress) -> None:
        self._events, self._progress = events, progress
        self._next = 0.0

    def say(self, line: str) -> None:
        """A short line when something slow begins or goes on."""
        if line.rstrip("0123456789/") != self._progress.text.rstrip("0123456789/"):
            self._events.publish("training.message", message=line)
        self._progress.say(line)

    def step(self, progress: EpochProgress) -> None:
        """A step of an epoch; not each one is an event."""
        self._progress.epoch(progress)
        done, now = progress.windows_done, time.monotonic()
        if done % max(1, progress.windows // EVENTS) == 0 and (now > self._next or done == progress.windows):
            self._next = now + SECONDS_BETWEEN_UPDATES
            self._events.publish("training.progress", **progress.model_dump())

    def done(self, kind: str, position: str, result: Any) -> None:
        """A unit of the training is on record."""
        if kind == "epoch":
            facts = {name: result["result"][name] for name in ("epoch", "loss", "accuracy", "tokens", "seconds")}
            self._events.publish("training.epoch", position, **facts)


@asynccontextmanager
async def progress_artifact(progress: S, key: str) -> AsyncIterator[S]:
    """Yields what is shown, once a second at most and at last; a server that can't be told harms no run."""
    ended = asyncio.Event()
    waiting = asyncio.create_task(ended.wait())
    publishing = asyncio.create_task(_publish(progress, key, ended, waiting))
    try:
        yield progress
    finally:
        ended.set()
        await publishing


async def _publish(progress: Shown, key: str, ended: asyncio.Event, waiting: asyncio.Task[Any]) -> None:
    artifact: UUID | None = None
    shown, well = (0.0, ""), True
    while True:
        last_round = ended.is_set()
        now = (progress.percent, progress.text)
        try:
            if now != shown and artifact is None:
                artifact = await acreate_progress_artifact(now[0], key=key, description=now[1])
            elif now != shown and artifact is not None:
                await aupdate_progress_artifact(artifact, now[0], description=now[1])
            shown, well = now, True
        except Exception as error:
            if well:
                get_run_logger().warning("Progress could not be shown: %s", error)
            well = False
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
