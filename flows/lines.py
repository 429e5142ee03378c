"""A batch of OpenAI's API: each line a request, and its answer a unit of the batch's run.

A batch that is started again finds its finished lines on record, and asks what is left.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import TerminationSignal

from flows.answering import Answering, Api, Responses
from flows.asking import Asker
from flows.progress import BatchProgress, progress_artifact
from flows.support import Services
from storage.store import ObjectStore
from timestep.agents.record.attempt import Attempt
from timestep.agents.record.away import prefect_reached
from timestep.agents.record.lease import Lease
from timestep.agents.record.ledger import Begin, Ledger
from timestep.agents.record.units import fingerprint
from timestep.batches.lines import BatchRequest, Checked, Endpoint, check, requests
from timestep.batches.record import CHECK, FILES, LINES, Answer, Results
from timestep.batches.results import END, ResultFiles
from timestep.batches.settings import BatchSettings
from timestep.errors import DatasetError, StorageError
from timestep.files import Files

FAILED = 400  # and above: the status of an answer that is an error
INLINE = 8_000  # characters of JSON above which an answer's body is an object in storage


async def run_lines(
    attempt: Attempt, input_file_id: str, settings: BatchSettings, concurrency: int, services: Services
) -> Results:
    """Check the file, have each line answered, write the results' files.

    Raises:
        DatasetError: the file makes no sense; all that is wrong is on record.
        NotFoundError: there is no such file.
    """
    files = Files(services.database, services.store)
    longest = services.settings.max_body_bytes
    checked = await _checked(attempt.ledger, files, input_file_id, settings, longest)
    if checked.errors:
        first = checked.errors[0]
        raise DatasetError(input_file_id, str(first.message), first.line)
    async with (
        progress_artifact(BatchProgress(checked.total), "progress") as progress,
        _answering(attempt.lease, settings, concurrency, services) as answering,
    ):
        lines = Lines(attempt.ledger, services.store, settings, longest, progress)
        asked = lines.run(files.open(input_file_id), answering, concurrency)
        in_time = await _in_time(asked, settings.deadline)
        if not in_time:
            await answering.stop()
    recorded = await attempt.ledger.begin(Begin(FILES, "batch", "files", ""))
    if recorded is not None:
        return Results.model_validate(recorded.result)
    run_id = UUID(attempt.ledger.step_id)
    writer = ResultFiles(services.database, services.store, run_id, settings.output_expires_after)
    left = None if in_time else _left(attempt.ledger, requests(files.open(input_file_id), settings.endpoint, longest))
    results = await writer.write("completed" if in_time else "expired", checked.total, END, left)
    await attempt.ledger.finish(FILES, results.model_dump())
    return results


@asynccontextmanager
async def _answering(
    lease: Lease, settings: BatchSettings, concurrency: int, services: Services
) -> AsyncIterator[Answering]:
    """What answers the lines. Steps under way are stopped with a batch that is cancelled, and with no other."""
    if settings.endpoint is not Endpoint.RESPONSES:
        async with Asker(services.settings, concurrency) as asker:
            yield Api(asker, settings.endpoint)
        return
    with prefect_reached():
        async with get_client() as client:
            answering = Responses(lease, client, services)
            try:
                yield answering
            except (asyncio.CancelledError, TerminationSignal):
                await asyncio.shield(_stop_cancelled(client, lease, answering))
                raise


async def _stop_cancelled(client: PrefectClient, lease: Lease, answering: Answering) -> None:
    # One that is interrupted finds its steps again when it goes on.
    own = await client.read_flow_run(UUID(lease.step_id))
    if own.state is not None and (own.state.is_cancelling() or own.state.is_cancelled()):
        await answering.stop()


@dataclass
class Lines:
    """The lines of a batch under way."""

    ledger: Ledger
    store: ObjectStore
    settings: BatchSettings
    longest: int  # bytes of a line
    progress: BatchProgress
    recording: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, stream: AsyncIterator[bytes], answering: Answering, concurrency: int) -> None:
        """Have every line answered, so many at a time."""
        waiting, turn = requests(stream, self.settings.endpoint, self.longest), asyncio.Lock()

        async def work() -> None:
            while True:
                async with turn:
                    request = await anext(waiting, None)
                if request is None:
                    return
                await self.line(request, answering)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(concurrency):
                    workers.create_task(work())
        except BaseExceptionGroup as group:
            # The signal that ends the process comes up in any of them, and is to be seen as what it is.
            signals = (error for error in group.exceptions if not isinstance(error, Exception))
            raise next(signals, group.exceptions[0]) from None
        finally:
            if self.recording:
                await asyncio.wait(self.recording)

    async def line(self, request: BatchRequest, answering: Answering) -> None:
        """One line: its answer from the record, or asked for and recorded."""
        position = f"{LINES}{request.number}"
        shown = {"custom_id": request.custom_id}
        asked = fingerprint([self.settings.endpoint, request.custom_id, request.body])
        recorded = await self.ledger.begin(Begin(position, "batch", f"line {request.number}", asked, request=shown))
        if recorded is not None:
            self.progress.line(failed=Answer.model_validate(recorded.result).status >= FAILED)
            return
        answer = await self._kept(await answering.answer(request))
        recording = asyncio.create_task(self._record(request.number, answer))
        self.recording.add(recording)
        recording.add_done_callback(self.recording.discard)
        # Shielded: an answer that came is recorded, also where the batch is cancelled or its time is over.
        await asyncio.shield(recording)

    async def _record(self, number: int, answer: Answer) -> None:
        await self.ledger.finish(f"{LINES}{number}", answer.model_dump(mode="json"))
        self.progress.line(failed=answer.status >= FAILED)

    async def _kept(self, answer: Answer) -> Answer:
        """The answer, its body in storage if it is large."""
        text = json.dumps(answer.body)
        if len(text) <= INLINE:
            return answer
        try:
            stored = await self.store.put_content(
                text.encode(), prefix="units", suffix=".json", content_type="application/json"
            )
        except StorageError:  # the record takes it too, as it takes what is done
            return answer
        return answer.model_copy(update={"body": None, "stored": stored})


async def _checked(ledger: Ledger, files: Files, input_file_id: str, settings: BatchSettings, longest: int) -> Checked:
    begin = Begin(CHECK, "batch", "check", fingerprint([input_file_id, settings.endpoint]))
    recorded = await ledger.begin(begin)
    if recorded is not None:
        return Checked.model_validate(recorded.result)
    checked = await check(files.open(input_file_id), settings.endpoint, longest)
    await ledger.finish(CHECK, checked.model_dump())
    return checked


async def _in_time(work: Any, deadline: datetime | None) -> bool:
    """Do the work until the deadline; False: it was cut there."""
    seconds = None if deadline is None else max((deadline - datetime.now(UTC)).total_seconds(), 0)
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True


async def _left(ledger: Ledger, lines: AsyncIterator[BatchRequest]) -> AsyncIterator[tuple[int, str]]:
    """The lines without an answer on record."""
    async for request in lines:
        unit = ledger.known(f"{LINES}{request.number}")
        if unit is None or not unit.finished:
            yield request.number, request.custom_id
