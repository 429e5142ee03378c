"""A service of its own for each module: these tests kill parts of it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings
from prefect.utilities.callables import parameter_schema

from deployments import instance
from deployments.local import free_port
from deployments.state import ServiceState, load_state
from tests.conftest import environment
from tests.deployments import naps
from timestep.settings import Settings

START_SECONDS = 180


class Instance:
    """`python -m deployments.local` on an empty home, in the foreground of a process of ours."""

    def __init__(self, **overrides: Any) -> None:
        # A short path: PostgreSQL's socket lies below it.
        self.home = Path(tempfile.mkdtemp(prefix="tsu-"))
        self.settings = Settings(home=self.home, port=free_port(), prefect_port=free_port(), **overrides)
        self.process: subprocess.Popen[str] | None = None

    def command(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.local"],
            env=environment() | self.settings.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self) -> ServiceState:
        """Start and wait until ready."""
        self.process = self.command()
        wait_for(lambda: self.process.poll() is not None or self.is_ready(), START_SECONDS)
        if self.process.poll() is not None:
            raise AssertionError("\n".join(self.process.communicate()))
        return self.state

    def is_ready(self) -> bool:
        state = load_state(self.settings)
        return state is not None and state.ready

    @property
    def state(self) -> ServiceState:
        state = load_state(self.settings)
        assert state is not None
        return state

    @property
    def log(self) -> str:
        return (self.settings.log_dir / "up.log").read_text()

    def processes(self) -> list[psutil.Process]:
        """All processes of the service but its parent and the watchdog, flow runs included."""
        return list(instance.members(instance.home_mark(self.home)))

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.communicate(timeout=30)

    @asynccontextmanager
    async def prefect(self) -> AsyncIterator[PrefectClient]:
        values = {PREFECT_API_URL: self.state.urls.prefect_api, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}
        with temporary_settings(values):
            async with get_client() as client:
                yield client

    async def trigger(self, client: PrefectClient, name: str, **parameters: Any) -> FlowRun:
        """Start one of our flows that wait, as a run of a deployment on the service's work pool."""
        flow = getattr(naps, name)
        deployment = await client.create_deployment(
            await client.create_flow(flow),
            name,
            entrypoint=f"tests.deployments.naps.{name}",
            work_pool_name=self.settings.work_pool,
            parameter_openapi_schema=parameter_schema(flow).model_dump(exclude_unset=True),
        )
        return await client.create_flow_run_from_deployment(deployment, parameters=parameters)


async def reach(client: PrefectClient, run: FlowRun, *names: str, seconds: float = 60) -> FlowRun:
    """Wait until the flow run's state has one of these names."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run = await client.read_flow_run(run.id)
        if run.state is not None and run.state.name in names:
            return run
        await asyncio.sleep(0.1)
    raise AssertionError(f"{run.state} and not {names} after {seconds} s")


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Wait until the condition holds; the seconds that took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not so after {seconds} s")
        time.sleep(0.05)
    return time.monotonic() - start


def is_running(pid: int) -> bool:
    """Whether there is such a process, zombies apart."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="package", autouse=True)
def nobodys_settings() -> Iterator[None]:
    """No settings but those a test gives."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("TIMESTEP_", "PREFECT_"))]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def up() -> Iterator[Instance]:
    """A running service."""
    running = Instance()
    try:
        running.start()
        yield running
    finally:
        running.stop()
        for process in running.processes():
            os.kill(process.pid, signal.SIGKILL)
        shutil.rmtree(running.home, ignore_errors=True)
