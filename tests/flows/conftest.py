"""Helpers around Prefect's own client for the flow tests."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from sqlalchemy import select

from deployments.state import load_state
from tests.conftest import Service
from timestep import runs
from timestep.agents.types import StepOutput
from timestep.database.engine import Database
from timestep.database.models import UnitRow
from timestep.settings import Settings


@dataclass
class Steps:
    """Runs of the ``step`` deployment, through the service's real server and worker."""

    client: PrefectClient
    storage: str

    async def start(self, **parameters: Any) -> FlowRun:
        return await runs.start(self.client, "step/step", parameters)

    async def finished(self, run: FlowRun, seconds: float = 240) -> FlowRun:
        """The run, once it has ended."""
        (ended,) = await asyncio.wait_for(runs.wait(self.client, {run.id}), seconds)
        return ended

    async def output(self, run: FlowRun) -> StepOutput:
        return StepOutput.model_validate(await runs.result(run, self.storage))

    async def run(self, **parameters: Any) -> tuple[FlowRun, StepOutput]:
        """A step from its start to its output."""
        run = await self.finished(await self.start(**parameters))
        return run, await self.output(run)

    async def refused(self, **parameters: Any) -> str:
        """What a step says that has to fail."""
        run = await self.finished(await self.start(**parameters))
        assert run.state is not None
        assert run.state.is_failed(), run.state
        with pytest.raises(runs.RunFailedError) as caught:
            await self.output(run)
        return str(caught.value)


@pytest.fixture
async def steps(service: Service) -> AsyncIterator[Steps]:
    async with runs.connect(service.prefect_api) as connected:
        yield Steps(connected, f"local://{service.home}/storage")


@pytest.fixture
def controlflow_agents(service: Service) -> Iterator[None]:
    """The agents file has ControlFlow's agents meanwhile."""
    there = service.agents.with_name("controlflow")
    there.touch()
    yield
    there.unlink()


async def artifacts(client: PrefectClient, run_id: UUID) -> dict[str, Any]:
    """The run's artifacts by key."""
    found = await client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    )
    return {str(artifact.key): artifact.data for artifact in found}


async def units(service: Service, run_id: UUID) -> list[str]:
    """Positions of the finished units of a step, from the record itself."""
    state = load_state(Settings(home=service.home))
    assert state is not None
    database = Database(state.database)
    try:
        async with database.session() as session:
            finished = (UnitRow.step_id == str(run_id), UnitRow.finished_at.is_not(None))
            return sorted(await session.scalars(select(UnitRow.position).where(*finished)))
    finally:
        await database.close()


async def task_states(client: PrefectClient, run_id: UUID) -> list[tuple[str, str]]:
    """(name, final state) of the run's tasks."""
    tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    return sorted((task.name, str(task.state.name) if task.state else "") for task in tasks)
