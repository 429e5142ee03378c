"""Helpers around Prefect's own client for the flow tests."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun

from tests.conftest import Service
from timestep import runs


@pytest.fixture
async def client(service: Service) -> AsyncIterator[PrefectClient]:
    async with runs.connect(service.prefect_api) as connected:
        yield connected


async def finished(client: PrefectClient, run: FlowRun, seconds: float = 240) -> FlowRun:
    """The run, once it has ended."""
    (ended,) = await asyncio.wait_for(runs.wait(client, {run.id}), seconds)
    return ended


async def artifacts(client: PrefectClient, run_id: UUID) -> dict[str, Any]:
    """The run's artifacts by key."""
    found = await client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    )
    return {str(artifact.key): artifact.data for artifact in found}


async def task_states(client: PrefectClient, run_id: UUID) -> list[tuple[str, str]]:
    """(name, final state) of the run's tasks."""
    tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    return sorted((task.name, task.state.name if task.state else "") for task in tasks)
