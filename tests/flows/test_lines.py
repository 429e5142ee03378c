"""The lines of a batch of requests: what becomes of them where its process is ended."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prefect.exceptions import TerminationSignal

from flows.lines import Lines
from flows.progress import BatchProgress
from storage.store import ObjectStore
from timestep.agents.record.ledger import MemoryLedger
from timestep.batches.lines import BatchRequest, Endpoint
from timestep.batches.record import Answer
from timestep.batches.settings import BatchSettings

SETTINGS = BatchSettings(endpoint=Endpoint.EMBEDDINGS)  # type: ignore[call-arg]


async def file(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        body = {"model": "m", "input": "text"}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": body}
        yield f"{json.dumps(line)}\n".encode()


class Signalled:
    """Answers at once, but for the one line at which the process is told to end."""

    async def answer(self, request: BatchRequest) -> Answer:
        await asyncio.sleep(0)
        if request.number == 20:
            raise TerminationSignal(signal.SIGTERM)
        return Answer(status=200, request_id="r", body={})

    async def stop(self) -> None:
        """Nothing is under way."""


async def test_a_signal_within_a_line_is_that_signal_for_the_batch(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    progress = BatchProgress(4000)
    lines = Lines(ledger, ObjectStore.open(f"local://{tmp_path}"), SETTINGS, 1000, progress)
    with pytest.raises(TerminationSignal):
        await lines.run(file(4000), Signalled(), 4)
    recorded = [number for number in range(1, 4001) if (unit := ledger.known(f"line/{number}")) and unit.finished]
    assert set(range(1, 17)) <= set(recorded) and 20 not in recorded and len(recorded) < 40
    assert progress.text == f"{len(recorded)} of 4000 lines, 0 failed"
