"""Workers of several kinds on one work pool: each takes the runs of its own kind, and waits for a pool that is missing.

Prefect shows every run of a pool to each of its workers. Which kind a run is of, its parameter ``mode`` tells: as a
rule, runs that think go to warm processes, and runs that learn get a pod of their own.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.workers.base import BaseWorker

from timestep.errors import ServiceUnavailableError
from timestep.settings import Settings

PAGE = 200  # most runs that Prefect's API returns at once
POOL_SECONDS = 1.0  # between two looks for a pool that is missing

Takes = Callable[[FlowRun], bool]

if TYPE_CHECKING:
    _Worker = BaseWorker[Any, Any, Any]
else:
    _Worker = object  # or it would register a worker type of its own with Prefect


def is_training(flow_run: FlowRun) -> bool:
    """Whether a model is to learn in this run."""
    return (flow_run.parameters or {}).get("mode") == "training"


def any_run(_flow_run: FlowRun) -> bool:
    """For a worker that has its pool to itself."""
    return True


class SharesPool(_Worker):
    """Makes a worker share its pool: the runs that it doesn't take are as good as not there."""

    def __init__(self, *args: Any, takes: Takes = any_run, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.takes = takes

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        """As Prefect's; where a full page holds none of ours, those behind it may."""
        page = await super()._get_scheduled_flow_runs()
        since = None
        while len(page) >= PAGE and not any(self.takes(entry.flow_run) for entry in page):
            latest = max(str(entry.flow_run.next_scheduled_start_time) for entry in page)
            if latest == since:
                break
            since = latest
            due = datetime.now(UTC) + timedelta(seconds=self._prefetch_seconds)
            response = await self.client.request(
                "POST",
                "/work_pools/{name}/get_scheduled_flow_runs",
                path_params={"name": self._work_pool_name},
                json={"scheduled_after": since, "scheduled_before": str(due)},
            )
            page = WorkerFlowRunResponse.model_validate_list(response.json())
        return page

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        ours = [entry for entry in flow_run_response if self.takes(entry.flow_run)]
        return await super()._submit_scheduled_flow_runs(ours)


def ready_file(settings: Settings) -> Path:
    """Holds the process id of the worker that is ready."""
    return settings.run_dir / "worker.ready"


def waiting_file(settings: Settings) -> Path:
    """Is there while the worker waits for its pool to be registered."""
    return settings.run_dir / "worker.waiting"


def say_ready(settings: Settings) -> None:
    """Say that this process polls its pool."""
    ready_file(settings).write_text(str(os.getpid()))
    waiting_file(settings).unlink(missing_ok=True)


def say_nothing(settings: Settings) -> None:
    """Take back what a worker before this one said."""
    for file in (ready_file(settings), waiting_file(settings)):
        file.unlink(missing_ok=True)


async def until_healthy(settings: Settings, seconds: float | None = None) -> None:
    """Wait for the Prefect server.

    Raises:
        ServiceUnavailableError: it didn't answer for ``seconds``.
    """
    try:
        async with asyncio.timeout(seconds), httpx.AsyncClient(trust_env=False, verify=False) as client:
            while True:
                with suppress(httpx.HTTPError):
                    if (await client.get(f"{settings.prefect_api}/health")).is_success:
                        return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise ServiceUnavailableError("Prefect server", settings.prefect_api) from None


async def until_registered(settings: Settings, *pools: str) -> None:
    """Wait until the Prefect server has these work pools: in a cluster, the role ``register`` makes them."""
    await until_healthy(settings)
    async with get_client() as client:
        for pool in pools:
            while True:
                try:
                    await client.read_work_pool(pool)
                    break
                except ObjectNotFound:
                    if not waiting_file(settings).exists():
                        waiting_file(settings).touch()
                        print(f"Work pool '{pool}' is missing: waiting until it is registered.", flush=True)
                    await asyncio.sleep(POOL_SECONDS)


async def until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Do the work until SIGINT or SIGTERM, which cancel it."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        if sys.platform == "win32":
            signal.signal(number, lambda *_: task.cancel())
        else:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
