"""What answers the lines of a batch: the service's HTTP API, or a step for each line of its own."""

from typing import Any, Protocol
from uuid import UUID

from prefect.client.orchestration import PrefectClient

from flows.asking import Asker
from flows.support import Services
from timestep import runs
from timestep.agents import respond
from timestep.agents.record.away import prefect_reached
from timestep.agents.record.lease import Lease, alive
from timestep.agents.types import StepOutput
from timestep.batches.lines import BatchRequest, Endpoint
from timestep.batches.record import Answer
from timestep.errors import RunFailedError, TimestepError
from timestep.models.errors import error_body

STEP = "step/step"


class Answering(Protocol):
    """Answers requests, many at a time; what is wrong with one is its answer."""

    async def answer(self, request: BatchRequest) -> Answer:
        """The answer to one request."""
        ...

    async def stop(self) -> None:
        """Nobody waits any more for what is under way."""
        ...


class Api:
    """Asks the HTTP API. What is under way ends when its connection does."""

    def __init__(self, asker: Asker, endpoint: Endpoint) -> None:
        self._asker, self._endpoint = asker, endpoint

    async def answer(self, request: BatchRequest) -> Answer:
        """The server's."""
        return await self._asker.post(self._endpoint, request.body)

    async def stop(self) -> None:
        """Nothing is left to be done."""


class Responses:
    """Has a step answer each request of the Responses API; one that is started again finds its steps."""

    def __init__(self, lease: Lease, client: PrefectClient, services: Services) -> None:
        self._lease, self._client, self._services = lease, client, services

    async def answer(self, request: BatchRequest) -> Answer:
        """What came of the line's step."""
        try:
            respond.check(request.body)
            asked = respond.parameters(request.body)
            key = f"{self._lease.step_id}-{request.number}"
            with prefect_reached():
                run = await runs.start(self._client, STEP, asked, idempotency_key=key, tags=[respond.TAG, "batch"])
        except TimestepError as error:
            if error.status >= 500:
                raise
            return Answer(status=error.status, request_id=f"req_{request.number}", body=error_body(error))
        with prefect_reached():
            (run,) = await runs.wait(self._client, {run.id})
        request_id = f"req_{run.id.hex}"
        try:
            output = StepOutput.model_validate(await runs.result(run, self._services.settings.storage))
        except RunFailedError as error:
            return Answer(status=error.status, request_id=request_id, body=error_body(error))
        created, ended = run.created or run.expected_start_time, run.end_time
        body: dict[str, Any] = respond.response(
            run.parameters["inference"]["request"],
            output,
            created.timestamp() if created else 0.0,
            ended.timestamp() if ended else None,
        )
        return Answer(status=200, request_id=request_id, body=body)

    async def stop(self) -> None:
        """Cancel the steps under way, also those that a process before this one started."""
        with prefect_reached():
            await runs.cancel_started(self._client, UUID(self._lease.step_id), self._lives)

    async def _lives(self, run_id: UUID) -> bool:
        return (await alive(self._services.database, [str(run_id)]))[str(run_id)]
