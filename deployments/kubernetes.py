"""The worker whose flow runs are Kubernetes jobs, `python -m deployments.kubernetes`: Prefect's, with three rules.

It takes the runs that warm workers leave; a run that learns gets the job template of the training pool, and a place
among as many as that pool allows, whichever pool it is in; and no job's manifest holds a secret.
"""

import asyncio
import base64
import json
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import anyio.abc
from kubernetes_asyncio.client import BatchV1Api
from kubernetes_asyncio.client.exceptions import ApiException
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect_kubernetes.worker import (  # type: ignore[import-untyped]
    KubernetesWorker,
    KubernetesWorkerJobConfiguration,
    KubernetesWorkerResult,
)

from deployments.pools import (
    PAGE,
    SharesPool,
    Takes,
    any_run,
    is_training,
    say_nothing,
    say_ready,
    until_registered,
    until_signal,
)
from deployments.program import exit_code
from timestep.settings import Settings, load_settings

TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
NEVER_PLAIN = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY")


@dataclass(frozen=True)
class ServiceAccount:
    """Whose rights the worker has. It owns the jobs: Kubernetes deletes them with it, at the release's end."""

    namespace: str
    reference: dict[str, str]


def service_account(token: Path = TOKEN) -> ServiceAccount | None:
    """The worker's, as its token tells it; None outside a cluster."""
    try:
        claims = token.read_text().split(".")[1]
        told = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["kubernetes.io"]
        named = {"name": str(told["serviceaccount"]["name"]), "uid": str(told["serviceaccount"]["uid"])}
        return ServiceAccount(told["namespace"], {"apiVersion": "v1", "kind": "ServiceAccount", **named})
    except (OSError, ValueError, LookupError):
        return None


class PodConfiguration(KubernetesWorkerJobConfiguration):  # type: ignore[misc]
    """The job of one flow run."""

    @classmethod
    async def resolve_for_flow_run(
        cls, flow_run: FlowRun, *, client: PrefectClient, work_pool: WorkPool, **others: Any
    ) -> Self:
        """As Prefect's, with the training pool's template for a run that learns, whichever pool it is in."""
        training = load_settings().training_pool
        if training is not None and is_training(flow_run) and work_pool.name != training:
            template = (await client.read_work_pool(training)).base_job_template
            work_pool = work_pool.model_copy(update={"base_job_template": template})
        resolved: Self = await super().resolve_for_flow_run(flow_run, client=client, work_pool=work_pool, **others)
        return resolved

    @classmethod
    def _base_environment(cls) -> dict[str, str]:
        # Prefect would write all of the worker's settings there. The job's pod completes its own.
        known = get_current_settings().to_environment_variables(exclude_unset=True, include_secrets=False)
        return {name: value for name, value in known.items() if name == "PREFECT_API_URL" or "PREFECT_LOGGING_" in name}

    def prepare_for_flow_run(
        self, flow_run: FlowRun, deployment: DeploymentResponse | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """As Prefect's; what the template takes from a Secret stays so, and only the service starts a run again."""
        self.job_manifest["spec"]["backoffLimit"] = 0
        container: dict[str, Any] = self.job_manifest["spec"]["template"]["spec"]["containers"][0]
        asked: Any = self.env  # a list where the pool's variable is one
        lists = [entries for entries in (container.get("env"), asked) if isinstance(entries, list)]
        template: list[dict[str, Any]] = lists[0] if lists else []
        wanted = {entry["name"] for entry in asked} if isinstance(asked, list) else set(asked)
        super().prepare_for_flow_run(flow_run, deployment, *args, **kwargs)
        made = {entry["name"]: entry for entry in container["env"]}
        # In the template's order: a variable may be made of those before it.
        kept = [
            made.get(entry["name"], entry) if entry["name"] in wanted and "valueFrom" not in entry else entry
            for entry in template
        ]
        names = {entry["name"] for entry in kept}
        added = [entry for name, entry in made.items() if name not in names]
        if (owner := service_account()) is not None and self.namespace == owner.namespace:
            self.job_manifest["metadata"]["ownerReferences"] = [owner.reference]
        container["env"] = [e for e in added + kept if "valueFrom" in e or e["name"] not in NEVER_PLAIN]


class TrainingLimit:
    """As many runs that learn at a time as the training pool allows, and none while it is paused."""

    def __init__(self, pool: str, shared_pool: str) -> None:
        self.pool = pool
        self.turn = asyncio.Lock()  # one worker at a time: they count before they submit
        self.workers: list[PodWorker] = []
        self.admitted: set[UUID] = set()
        self._pools = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool, shared_pool]))

    def counts(self, flow_run: FlowRun, pool: str | None) -> bool:
        """Whether this run, which is in that pool, needs a place."""
        return pool == self.pool or is_training(flow_run)

    async def places(self, client: PrefectClient) -> int:
        """How many more may start now."""
        try:
            pool = await client.read_work_pool(self.pool)
        except ObjectNotFound:  # nor is there a template
            return 0
        if pool.is_paused or pool.concurrency_limit is None:
            return 0 if pool.is_paused else PAGE
        # Those of ours that the server does not call pending yet.
        self.admitted &= {run_id for worker in self.workers for run_id in worker._submitting_flow_run_ids}
        under_way = self.admitted | await self._under_way(client)
        return max(0, pool.concurrency_limit - len(under_way))

    async def _under_way(self, client: PrefectClient) -> set[UUID]:
        states = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])  # as Prefect counts
        found: set[UUID] = set()
        offset, more = 0, True
        while more:
            page = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=states)),
                work_pool_filter=self._pools,
                limit=PAGE,
                offset=offset,
            )
            found |= {run.id for run in page if self.counts(run, run.work_pool_name)}
            offset, more = offset + PAGE, len(page) == PAGE
        return found


class PodWorker(SharesPool, KubernetesWorker):  # type: ignore[misc]
    """Prefect's worker for Kubernetes, for the runs of a pool that are to get a pod of their own."""

    job_configuration = PodConfiguration

    def __init__(self, *args: Any, training: TrainingLimit | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._training = training
        if training is not None:
            training.workers.append(self)

    @classmethod
    def __dispatch_key__(cls) -> str | None:
        return "timestep-kubernetes"  # looked up as `kubernetes`, Prefect's own is still found

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        ours = [
            entry
            for entry in flow_run_response
            if self.takes(entry.flow_run) and entry.flow_run.id not in self._submitting_flow_run_ids
        ]
        limit = self._training
        learning = [] if limit is None else [e for e in ours if limit.counts(e.flow_run, self._work_pool_name)]
        if limit is None or not learning:
            return await super()._submit_scheduled_flow_runs(ours)
        async with limit.turn:
            admitted = [entry.flow_run.id for entry in learning][: await limit.places(self.client)]
            limit.admitted.update(admitted)
            chosen = [entry for entry in ours if entry not in learning or entry.flow_run.id in admitted]
            return await super()._submit_scheduled_flow_runs(chosen)

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Not yet: see `run`."""

    async def run(
        self,
        flow_run: FlowRun,
        configuration: KubernetesWorkerJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> KubernetesWorkerResult:
        """Make the job; it goes on without the worker, whom its end is told by Prefect's observer."""
        if flow_run.infrastructure_pid:
            await self._remove_waiting_jobs(flow_run, configuration)
        result = await KubernetesWorker.run(self, flow_run, configuration, task_status)
        # The labels tell the repair loop to have patience with a pod. A run whose worker dies before there is one
        # has none, and is started again soon.
        await super()._give_worker_labels_to_flow_run(flow_run.id)
        return result

    async def _remove_waiting_jobs(self, flow_run: FlowRun, configuration: KubernetesWorkerJobConfiguration) -> None:
        """Delete jobs of an earlier start whose pods found no place yet: two would be one too many.

        Those that run are left alone: what they do is fenced, and what they'd say at their end is not.
        """
        async with self._get_configured_kubernetes_client(configuration) as client:
            jobs = BatchV1Api(client)
            found = await jobs.list_namespaced_job(
                configuration.namespace, label_selector=f"prefect.io/flow-run-id={flow_run.id}"
            )
            for job in found.items:
                if job.status.active and not job.status.ready:
                    with suppress(ApiException):  # it may just have ended
                        await jobs.delete_namespaced_job(
                            job.metadata.name, configuration.namespace, propagation_policy="Background"
                        )


def leftover(settings: Settings) -> Takes:
    """The runs of the service's pool that no warm worker takes."""
    if not settings.warm:
        return any_run
    return is_training if settings.training_pool is not None else lambda _: False


async def work(settings: Settings) -> None:
    """Serve the service's pool and the one for training until cancelled."""
    pools: dict[str, Takes] = {settings.work_pool: leftover(settings)}
    limit = None
    if settings.training_pool is not None:
        pools.setdefault(settings.training_pool, any_run)
        limit = TrainingLimit(settings.training_pool, settings.work_pool)
    await until_registered(settings, *pools)
    started = 0

    def say_started(*_: object) -> None:
        nonlocal started
        started += 1
        if started == len(pools):
            say_ready(settings)

    async with asyncio.TaskGroup() as tasks:
        for pool, takes in pools.items():
            worker = PodWorker(
                pool, name=socket.gethostname(), create_pool_if_not_found=False, takes=takes, training=limit
            )
            tasks.create_task(worker.start(printer=say_started))


def main() -> int:
    """Work until told to stop; the jobs go on."""
    settings = load_settings()
    say_nothing(settings)
    return exit_code(until_signal(work(settings)))


if __name__ == "__main__":
    sys.exit(main())
