"""A Prefect progress artifact that follows the trainer, at most one update a second."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from training.finetune import EpochProgress

SECONDS_BETWEEN_UPDATES = 1.0


@asynccontextmanager
async def progress_artifact(epochs: int) -> AsyncIterator[Callable[[EpochProgress], None]]:
    """Yields what to call with each step of an epoch; the last one is always shown."""
    latest: EpochProgress | None = None
    ended = asyncio.Event()

    def remember(progress: EpochProgress) -> None:
        nonlocal latest
        latest = progress

    async def publish() -> None:
        artifact: UUID | None = None
        shown: EpochProgress | None = None
        while True:
            last_round = ended.is_set()
            if latest is not None and latest is not shown:
                shown = latest
                percent, text = _percent(shown, epochs), _text(shown, epochs)
                if artifact is None:
                    artifact = await acreate_progress_artifact(percent, key="training", description=text)
                else:
                    await aupdate_progress_artifact(artifact, percent, description=text)
            if last_round:
                return
            await asyncio.wait([waiting], timeout=SECONDS_BETWEEN_UPDATES)

    waiting = asyncio.create_task(ended.wait())
    publishing = asyncio.create_task(publish())
    try:
        yield remember
    finally:
        ended.set()
        await publishing


def _percent(progress: EpochProgress, epochs: int) -> float:
    return 100 * (progress.epoch - 1 + progress.windows_done / max(progress.windows, 1)) / epochs


def _text(progress: EpochProgress, epochs: int) -> str:
    return (
        f"epoch {progress.epoch}/{epochs}, window {progress.windows_done}/{progress.windows}, "
        f"loss {progress.loss:.3f}, accuracy {progress.accuracy:.1%}, {progress.eta_seconds:.0f} s left"
    )
