"""A batch of steps: each line of a JSONL file is a run of the ``step`` deployment of its own, results in its order.

The lines of OpenAI's batches, which are requests, are :mod:`flows.lines`'s.
"""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import prefect
from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound, ParameterTypeError, TerminationSignal
from prefect.runtime import flow_run
from pydantic import BaseModel

from flows.lines import run_lines
from flows.progress import BatchProgress, progress_artifact
from flows.step import step
from flows.support import Services, hold, let_go, shown, storable
from storage.store import ObjectStore
from timestep import runs
from timestep.agents.plain import whole
from timestep.agents.record.attempt import Attempt
from timestep.agents.record.away import is_away, outlived, prefect_reached
from timestep.agents.record.lease import Lease, alive
from timestep.agents.types import BatchOutput, StepOutput
from timestep.batches.lines import Endpoint
from timestep.batches.record import Results
from timestep.batches.settings import BatchSettings
from timestep.errors import ConflictError, DatasetError, TimestepError, UsageError
from timestep.settings import load_settings

DEPLOYMENT = "step/step"
STEPS = BatchSettings()


class Line(BaseModel):
    """One line of the results: of the input's line of that number (from 1)."""

    line: int
    status: str
    step_id: str | None = None
    output: StepOutput | None = None
    error: str | None = None


@flow(
    name="batch",
    flow_run_name="batch-{inputs}",
    description="Runs each line of a JSONL file as a step, or asks the HTTP API what it holds, and writes the results "
    "in the order of the lines.",
    persist_result=True,
    result_serializer="json",
    on_completion=[let_go],
    on_failure=[let_go],
)
async def batch(
    inputs: Annotated[
        str,
        shown(
            "Inputs",
            "JSONL file: a path, a stored object's key, or the id of a file of the HTTP API. "
            "A line: a step's parameters, its text, or a request.",
        ),
    ],
    concurrency: Annotated[int, shown("Concurrency", "Lines under way at a time.", ge=1, le=1000)] = 4,
    output: Annotated[str | None, shown("Output", "Path to write the steps' results to, beside the object.")] = None,
    settings: Annotated[BatchSettings, shown("Settings", "Of lines that are requests.")] = STEPS,
) -> BatchOutput | Results:
    """Run a batch; a line that fails, fails alone."""
    batch_id = str(flow_run.get_id())
    home = load_settings()
    async with outlived():
        lease = await hold(home, batch_id)
    services = Services.open(home)
    assert lease is not None, "services have a database"
    try:
        if settings.endpoint is Endpoint.STEP:
            return await _steps(lease, services, inputs, concurrency, output)
        async with outlived(), Attempt.begin(services.database, services.store, batch_id) as attempt:
            results = await run_lines(attempt, inputs, settings, concurrency, services)
            await attempt.confirm()
            return results
    except Exception as error:
        if is_away(error):
            raise
        raise storable(error)  # noqa: B904  the same error, as a rule


async def _steps(lease: Lease, services: Services, inputs: str, concurrency: int, output: str | None) -> BatchOutput:
    """Each line a step."""
    store, batch_id = services.store, lease.step_id
    _check_writable(output)
    # Not splitlines: JSON strings may hold other separators. Blank lines count, so that numbers are the file's.
    text = await _read(store, inputs)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DatasetError(inputs, "it is empty. Each line holds one step's parameters as JSON.")
    async with outlived():
        with prefect_reached():
            async with get_client() as client, progress_artifact(BatchProgress(len(lines)), "progress") as progress:
                running = _Batch(lease, client, asyncio.Semaphore(concurrency), services, progress)
                results = await running.results(lines)
        await lease.check()
    text = "".join(f"{result.model_dump_json()}\n" for result in results)
    reference = await store.put(f"batches/{batch_id}/output.jsonl", text.encode(), content_type="application/jsonl")
    if output is not None:
        await asyncio.to_thread(Path(output).write_text, text)
    async with outlived():
        with prefect_reached():
            await acreate_table_artifact(
                key="batch", table=whole(_table(results), nul=False), description=f"Batch of {inputs}"
            )
    completed = sum(result.status == "completed" for result in results)
    return BatchOutput(total=len(lines), completed=completed, failed=len(lines) - completed, output=reference)


def _check_writable(output: str | None) -> None:
    """Before the steps run, not after."""
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise UsageError(f"No folder '{Path(output).parent}' to write the results to.")


async def _read(store: ObjectStore, inputs: str) -> str:
    path = Path(inputs)
    try:
        if await asyncio.to_thread(path.is_file):
            return await asyncio.to_thread(path.read_text, encoding="utf-8")
        if path.is_absolute() or not await store.exists(inputs):
            raise DatasetError(inputs, "no such file, and no such object in storage.")
        return (await store.get(inputs)).decode()
    except UnicodeDecodeError as error:
        raise DatasetError(inputs, f"it is not UTF-8 text: {error.reason} at byte {error.start}.") from error


@dataclass(frozen=True)
class _Batch:
    """One batch under way: its lines run side by side, as many as the gate lets through."""

    lease: Lease
    client: PrefectClient
    gate: asyncio.Semaphore
    services: Services
    progress: BatchProgress
    running: set[UUID] = field(default_factory=set)

    async def results(self, lines: list[tuple[int, str]]) -> list[Line]:
        """Run all lines' steps; cancelled with the batch."""
        try:
            return await asyncio.gather(*(self.result(number, text) for number, text in lines))
        except (asyncio.CancelledError, TerminationSignal):
            await asyncio.shield(self.cancel_steps())
            raise

    async def result(self, number: int, text: str) -> Line:
        """What became of a line, which is counted."""
        line = await self.line(number, text)
        self.progress.line(failed=line.status == "failed")
        return line

    async def line(self, number: int, text: str) -> Line:
        """Run one line's step to its end; what is wrong with the line is its result."""
        try:
            parameters = _parameters(text)
        except (ValueError, TypeError, ParameterTypeError) as error:
            return Line(line=number, status="failed", error=f"line {number}: {error}")
        async with self.gate:
            # The key makes a batch that runs again after a crash find its steps instead of repeating them.
            key = f"{self.lease.step_id}-{number}"
            try:
                run = await runs.start(self.client, DEPLOYMENT, parameters, idempotency_key=key, tags=["batch"])
            except UsageError as error:
                return Line(line=number, status="failed", error=f"line {number}: {error}")
            self.running.add(run.id)
            (run,) = await runs.wait(self.client, {run.id})
            self.running.discard(run.id)
            await self.lease.progressed()
        try:
            output = StepOutput.model_validate(await runs.result(run, self.services.settings.storage))
        except TimestepError as error:
            return Line(line=number, status="failed", step_id=str(run.id), error=str(error))
        return Line(line=number, status="completed", step_id=str(run.id), output=output)

    async def cancel_steps(self) -> None:
        """Cancel the steps under way, if the batch is: one that is interrupted finds them again when it goes on."""
        own = await self.client.read_flow_run(UUID(self.lease.step_id))
        if own.state is None or not (own.state.is_cancelling() or own.state.is_cancelled()):
            return
        for run_id in list(self.running):
            with suppress(ConflictError, ObjectNotFound):
                await runs.cancel(self.client, run_id, self._lives)

    async def _lives(self, run_id: UUID) -> bool:
        return (await alive(self.services.database, [str(run_id)]))[str(run_id)]


def _parameters(text: str) -> dict[str, Any]:
    value = json.loads(text)
    parameters = {"input": value} if isinstance(value, str) else value
    if not isinstance(parameters, dict):
        raise TypeError("expected a JSON object with a step's parameters, or a string")
    unknown = set(parameters) - set(step.parameters.properties)
    if unknown:
        raise ValueError(f"no step parameter '{min(unknown)}'; there are {', '.join(step.parameters.properties)}")
    step.validate_parameters(parameters)
    return parameters


def _table(results: list[Line]) -> list[dict[str, Any]]:
    ui = str(prefect.settings.PREFECT_UI_URL.value() or "")
    return [
        {
            "line": result.line,
            "status": result.status,
            "step": f"[{result.step_id[:8]}]({ui}/runs/flow-run/{result.step_id})" if result.step_id else "",
            "result": result.error or str(result.output.output if result.output else "")[:200],
        }
        for result in results
    ]
