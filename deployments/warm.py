"""Prefect's process worker, whose flow runs start by fork from a warm interpreter instead of in a new one.

Everything around the start is Prefect's own: one process per flow run, cancellation through its control channel,
crash reports from the exit code, logs. Deployments that bring their own code or command get a new interpreter.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import anyio
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse
from prefect.flows import load_flow_from_flow_run
from prefect.runner._control_channel import ControlChannel
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle
from prefect.utilities.processutils import sanitize_subprocess_env
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult
from pydantic import PrivateAttr

from deployments.pools import SharesPool
from deployments.zygote import ForkedProcess, Zygote
from timestep.repair import WARM_WORKER, WORKER_TYPE_LABEL

STOP_SECONDS = 2.5  # for a flow run to report itself crashed when its worker stops
CANCEL_SECONDS = 4.5  # for a cancelled one to write its trace; Prefect would wait for half a minute


class WarmJobConfiguration(ProcessJobConfiguration):
    """Knows whether the flow is part of what is installed, so that a warm interpreter has it."""

    _installed: bool = PrivateAttr(default=False)

    @classmethod
    async def resolve_for_flow_run(cls, flow_run: FlowRun, *, work_pool: WorkPool, **others: Any) -> Self:
        """As Prefect's. What a pool of another type says of its pods is not for processes."""
        if work_pool.type != ProcessWorker.type:
            template = ProcessWorker.get_default_base_job_template()
            work_pool = work_pool.model_copy(update={"base_job_template": template})
        return await super().resolve_for_flow_run(flow_run, work_pool=work_pool, **others)

    def prepare_for_flow_run(
        self, flow_run: FlowRun, deployment: DeploymentResponse | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """As Prefect's, and looks where the deployment's code comes from."""
        super().prepare_for_flow_run(flow_run, deployment, *args, **kwargs)
        if deployment is not None and deployment.entrypoint and not self._command_configured:
            # A module entrypoint has no colon: nothing is pulled, the module is imported.
            self._installed = ":" not in deployment.entrypoint and not deployment.pull_steps


class ImpatientScope:
    """How Prefect ends a flow run's process group that was cancelled: asked, and killed if that is of no use."""

    wait_after_graceful_kill = True

    def __init__(self, process: ForkedProcess) -> None:
        self._process = process

    def is_alive(self, pid: int) -> bool:
        """Whether it still runs."""
        return self._process.returncode is None

    def graceful_kill(self, pid: int) -> None:
        """Ask it to end; it is killed soon after, also where Prefect would wait longer."""
        self._process.signal_group(signal.SIGTERM)
        asyncio.get_running_loop().call_later(CANCEL_SECONDS, self.hard_kill, pid)

    def hard_kill(self, pid: int) -> None:
        """End it, unless its process id may be another's by now."""
        if self._process.returncode is None:
            self._process.signal_group(signal.SIGKILL)

    def close(self) -> None:
        """Nothing is held."""


class ForkStarter:
    """Starts a flow run by fork; takes the place of Prefect's `EngineCommandStarter`."""

    def __init__(
        self, zygote: Zygote, configuration: ProcessJobConfiguration, cwd: Path, control: ControlChannel
    ) -> None:
        self._zygote, self._configuration, self._cwd, self._control = zygote, configuration, cwd, control

    async def start(
        self, flow_run: FlowRun, task_status: TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Start it, hand out its handle, return at its end. Cancelled, it ends the flow run first."""
        environment: dict[str, str | None] = {
            **os.environ,
            **self._configuration.env,  # Prefect's settings are among it
            "PREFECT__FLOW_RUN_ID": str(flow_run.id),
            "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",  # the worker runs them
            **self._control_environment(flow_run),
        }
        try:
            process = await self._zygote.start(
                sanitize_subprocess_env(environment), self._cwd, quiet=not self._configuration.stream_output
            )
        except BaseException:
            self._control.unregister(flow_run.id)
            raise
        handle: Any = process  # Prefect asks for `pid` and `returncode`, whatever it declares
        task_status.started(ProcessHandle(handle, ImpatientScope(process)))
        try:
            await process.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                process.signal_group(signal.SIGTERM)
                with anyio.move_on_after(STOP_SECONDS):
                    await process.wait()
                process.signal_group(signal.SIGKILL)
            raise

    def _control_environment(self, flow_run: FlowRun) -> dict[str, str]:
        try:
            port, token = self._control.register(flow_run.id)
        except RuntimeError:  # no listener: cancelling falls back to signals
            return {}
        return {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}


class WarmWorker(SharesPool, ProcessWorker):
    """A process worker with a zygote, where there can be one.

    Serves pools of type `process`, where stock workers can join it, and pools of type `kubernetes` beside those
    that make pods.
    """

    job_configuration = WarmJobConfiguration

    def __init__(self, *args: Any, zygote: Zygote | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._zygote = zygote

    @classmethod
    def __dispatch_key__(cls) -> str | None:
        return WARM_WORKER  # looked up as `process`, Prefect's own is still found

    def _record_work_pool_snapshot(self, work_pool: WorkPool) -> None:
        # Prefect would warn of a type that is not its own when it sees the pool for the first time.
        self._work_pool = self._work_pool or work_pool
        super()._record_work_pool_snapshot(work_pool)

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        """As Prefect's, which breaks where a run comes back before the worker is done with the process before."""
        for entry in flow_run_response:
            if entry.flow_run.id not in self._submitting_flow_run_ids:
                self._release_limit_slot(entry.flow_run.id)
        return await super()._submit_scheduled_flow_runs(flow_run_response)

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """As Prefect's, with a type of our own: the repair loop need not wait for this worker after a crash."""
        labels: dict[str, bool | int | float | str] = {
            WORKER_TYPE_LABEL: WARM_WORKER,
            "prefect.worker.name": self.name,
            "prefect.work-pool.name": self.work_pool.name,
            "prefect.work-pool.id": str(self.work_pool.id),
        }
        await self.client.update_flow_run_labels(flow_run_id, labels)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run one flow run to its end; ``task_status`` gets its process id."""
        installed = isinstance(configuration, WarmJobConfiguration) and configuration._installed
        if not installed or self._zygote is None or not await self._zygote.is_usable():
            started = await super().run(flow_run, configuration, task_status)
            return ProcessWorkerResult(status_code=0, identifier=started.identifier)  # why: below
        with contextlib.ExitStack() as stack:
            cwd = configuration.working_dir or stack.enter_context(tempfile.TemporaryDirectory(suffix="prefect"))
            result = await self._run_forked(self._zygote, flow_run, configuration, Path(cwd), task_status)
        if result is None or result.status_code is None:
            raise RuntimeError("Failed to start flow run process.")
        # A crash was reported. With any code but 0 it would be reported once more, seconds later, over a run that
        # may have been started again in between.
        return ProcessWorkerResult(status_code=0, identifier=str(result.handle.pid))

    async def _run_forked(
        self,
        zygote: Zygote,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        cwd: Path,
        task_status: TaskStatus[int] | None,
    ) -> FlowRunExecutionResult | None:
        result: FlowRunExecutionResult | None = None
        async with FlowRunExecutorContext() as context, anyio.create_task_group() as tasks:
            executor = context.create_executor(
                flow_run,
                ForkStarter(zygote, configuration, cwd, context.control_channel),
                resolve_flow=load_flow_from_flow_run,
                propose_submitting=False,
            )

            async def execute(*, task_status: TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED) -> None:
                nonlocal result
                result = await executor.submit(task_status=task_status)

            handle = await tasks.start(execute)
            if task_status is not None:
                task_status.started(handle.pid)
        return result
