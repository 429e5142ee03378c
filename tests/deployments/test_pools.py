"""What a cluster's pods do on one real Prefect server: registering, and the division of runs among two workers.

Kubernetes is an HTTP server here: what is asked of it is what these tests look at.
"""

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Pending, Running, Scheduled
from prefect.utilities.callables import parameter_schema

from deployments.kubernetes import PodWorker, TrainingLimit, leftover
from deployments.pools import PAGE, any_run, is_training
from deployments.register import register_in_cluster
from tests.deployments import moded
from tests.deployments.cluster import (
    AUTH,
    TRAINING_POOL,
    Cluster,
    Kubernetes,
    container_of,
    end,
    job_template,
    write_register_folder,
)
from tests.deployments.conftest import reach, wait_for
from timestep.agents.registry import load_registry
from timestep.database.engine import Database
from timestep.errors import ServiceUnavailableError, UsageError
from timestep.models.registry import ModelRegistry
from timestep.settings import Settings

pytestmark = pytest.mark.timeout(400)
SECONDS = 150.0  # for what a busy machine takes long to come to

OFTEN = {"slug": "often", "interval": 3600, "active": True, "parameters": {"input": "hello"}}


@pytest.fixture(scope="module")
def cluster(postgres_url: str) -> Iterator[Cluster]:
    """A Prefect server that knows nothing yet, and the settings of the pods around it."""
    home = Path(tempfile.mkdtemp(prefix="tspool-"))

    async def prepare() -> None:
        database = Database(postgres_url)
        await database.create_missing()
        await database.migrate()
        await database.close()

    asyncio.run(prepare())
    cluster = Cluster(home, postgres_url)
    write_register_folder(cluster.register_folder)
    try:
        with cluster.served():
            yield cluster
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[PrefectClient]:
    async with cluster.prefect() as client:
        yield client


@pytest.fixture
def kubernetes(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    """A Kubernetes API without a job, and this process as the worker's pod."""
    api = Kubernetes()
    with api.served(tmp_path) as config:
        # Its client reads KUBECONFIG when it is imported.
        monkeypatch.setattr("kubernetes_asyncio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(config))
        monkeypatch.setenv("PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED", "false")
        for name, value in cluster.settings.environment().items():
            monkeypatch.setenv(name, value)
        yield api


@asynccontextmanager
async def pod_workers(cluster: Cluster) -> AsyncIterator[None]:
    """The Kubernetes worker of both pools, in this process."""
    settings = cluster.settings
    limit = TrainingLimit(TRAINING_POOL, settings.work_pool)
    workers = [
        PodWorker(settings.work_pool, name="pod-1", takes=leftover(settings), training=limit),
        PodWorker(TRAINING_POOL, name="pod-1", training=limit),
    ]
    with cluster.prefect_settings():
        tasks = [asyncio.create_task(worker.start(printer=lambda *_: None)) for worker in workers]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def register(cluster: Cluster, schedules: dict[str, Any] | None = None, image: str = "timestep:1") -> None:
    write_register_folder(cluster.register_folder, schedules, image)
    with cluster.prefect_settings():
        await register_in_cluster(cluster.settings, load_registry(cluster.settings), cluster.register_folder)


async def trigger(client: PrefectClient, mode: str, pool: str = "timestep", count: int = 1, **others: Any) -> FlowRun:
    """A run of a flow with a mode, of a deployment on this pool; the last of so many."""
    deployment = await client.create_deployment(
        await client.create_flow(moded.moded),
        f"moded-{pool}",
        entrypoint="tests.deployments.moded.moded",
        work_pool_name=pool,
        parameter_openapi_schema=parameter_schema(moded.moded).model_dump(exclude_unset=True),
    )
    given = {name: others.pop(name) for name in ("state", "job_variables") if name in others}
    for _ in range(count):
        run = await client.create_flow_run_from_deployment(deployment, parameters={"mode": mode, **others}, **given)
    return run


async def delete_runs(client: PrefectClient) -> None:
    """Leave none that a worker would take."""
    for run in await client.read_flow_runs():
        await client.delete_flow_run(run.id)


async def jobs_of(kubernetes: Kubernetes, *runs: FlowRun, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """The job of each of these runs, once there is one."""

    def found() -> dict[str, dict[str, Any]]:
        return {job["metadata"]["labels"]["prefect.io/flow-run-id"]: job for job in [*kubernetes.jobs.values()]}

    await asyncio.to_thread(wait_for, lambda: {str(run.id) for run in runs} <= found().keys(), seconds)
    return [found()[str(run.id)] for run in runs]


async def test_a_warm_worker_waits_for_its_pool_then_takes_all_but_training(
    cluster: Cluster, client: PrefectClient
) -> None:
    ready, waiting = (cluster.settings.run_dir / name for name in ("worker.ready", "worker.waiting"))
    worker = cluster.pod("warm-worker")
    try:
        await asyncio.to_thread(wait_for, waiting.exists, SECONDS)
        assert not ready.exists()
        done = await asyncio.to_thread(cluster.pod("register", "--folder", str(cluster.register_folder)).communicate)
        assert done[0].splitlines()[-1].startswith("Registered: ")
        await asyncio.to_thread(wait_for, ready.exists, SECONDS)
        await asyncio.to_thread(wait_for, lambda: not waiting.exists(), SECONDS)

        training, thinking = await trigger(client, "training"), await trigger(client, "inference")
        thought = await reach(client, thinking, "Completed", seconds=SECONDS)
        assert thought.labels["prefect.worker.type"] == "timestep-process"
        assert thought.labels["prefect.worker.name"] == os.uname().nodename
        assert (await client.read_flow_run(training.id)).state_name == "Scheduled"

        # The end of the pod: what runs is told, and says so, long before Kubernetes would kill it.
        run = await reach(client, await trigger(client, "inference", seconds=600), "Running", seconds=SECONDS)
        begun = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        output = (await asyncio.to_thread(worker.communicate, timeout=60))[0]
        assert time.monotonic() - begun < 20
        assert worker.returncode == 0, output
        assert "Worker type mismatch" not in output
        await reach(client, run, "Crashed", seconds=1)
    finally:
        await asyncio.to_thread(end, worker)


async def test_what_the_folder_declares_is_registered(cluster: Cluster, client: PrefectClient) -> None:
    await register(cluster, {"step": [OFTEN]})
    pools = {pool.name: pool for pool in await client.read_work_pools()}
    assert {(pool.name, pool.type) for pool in pools.values()} == {
        ("timestep", "kubernetes"),
        (TRAINING_POOL, "kubernetes"),
    }
    assert pools["timestep"].base_job_template == job_template("timestep:1")
    assert pools[TRAINING_POOL].base_job_template == job_template("timestep:gpu")
    step = await client.read_deployment_by_name("step/step")
    assert (step.entrypoint, step.work_pool_name) == ("flows.step.step", "timestep")
    assert {(s.slug, s.active) for s in step.schedules} == {("nightly-training", False), ("values-often", True)}
    assert (await client.read_deployment_by_name("batch/batch")).work_pool_name == "timestep"
    assert (await client.read_block_document_by_name("default", "timestep-storage")).id
    database = Database(str(cluster.settings.database_url))
    assert "assistant" in await ModelRegistry(database).names()
    await database.close()


async def test_registering_again_syncs_templates_and_keeps_what_a_person_chose(
    cluster: Cluster, client: PrefectClient
) -> None:
    await register(cluster, {"step": [OFTEN], "batch": [{**OFTEN, "parameters": {"inputs": "a.jsonl"}}]})
    await client.update_work_pool("timestep", WorkPoolUpdate(is_paused=True, concurrency_limit=7))
    step = await client.read_deployment_by_name("step/step")
    (often,) = [schedule for schedule in step.schedules if schedule.slug == "values-often"]
    await client.update_deployment_schedule(step.id, often.id, active=False)
    await client.create_deployment_schedules(step.id, [(CronSchedule(cron="5 5 * * *"), True)])

    daily = {"cron": "0 6 * * *", "slug": "daily", "parameters": {"input": "x"}}
    for _ in range(2):
        await register(cluster, {"step": [{**OFTEN, "interval": 60}, daily]}, image="timestep:2")
        pool = await client.read_work_pool("timestep")
        assert (pool.is_paused, pool.concurrency_limit) == (True, 7)
        assert pool.base_job_template == job_template("timestep:2")
        again = await client.read_deployment_by_name("step/step")
        assert again.id == step.id
        active = {schedule.slug: schedule.active for schedule in again.schedules if schedule.slug}
        assert active == {"nightly-training": False, "values-often": False, "values-daily": True}
        assert [s.active for s in again.schedules if not s.slug] == [True]
        (changed,) = [schedule for schedule in again.schedules if schedule.slug == "values-often"]
        assert changed.schedule.interval.total_seconds() == 60
        # Of the schedule that was taken out of the values nothing is left.
        batch = await client.read_deployment_by_name("batch/batch")
        assert [schedule.slug for schedule in batch.schedules] == ["nightly-batch"]
    await client.update_work_pool("timestep", WorkPoolUpdate(is_paused=False, concurrency_limit=None))


async def test_a_pool_for_something_else_is_refused_in_one_line(cluster: Cluster, client: PrefectClient) -> None:
    await register(cluster)
    await client.create_work_pool(WorkPoolCreate(name="other", type="process"))
    settings = cluster.settings.model_copy(update={"work_pool": "other"})
    refused = pytest.raises(UsageError, match="Work pool 'other' is of type 'process', not 'kubernetes'")
    with cluster.prefect_settings(), refused:
        await register_in_cluster(settings, load_registry(settings), cluster.register_folder)
    await client.delete_work_pool("other")


async def test_registering_gives_up_where_no_prefect_server_answers(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.register.API_SECONDS", 0.5)
    settings = Settings(home=cluster.settings.home, prefect_api_url="http://127.0.0.1:9/api", work_pool="timestep")
    with pytest.raises(ServiceUnavailableError, match="Prefect server"):
        await register_in_cluster(settings, load_registry(settings), cluster.register_folder)


async def test_a_run_that_learns_gets_a_pod_of_the_training_pool_and_no_secret_in_it(
    cluster: Cluster, client: PrefectClient, kubernetes: Kubernetes
) -> None:
    await register(cluster)
    await delete_runs(client)
    thinking = await trigger(client, "inference")
    handed_over = await trigger(client, "training", job_variables={"env": {"MINE": "1"}})
    direct = await trigger(client, "training", pool=TRAINING_POOL)
    async with pod_workers(cluster):
        jobs = await jobs_of(kubernetes, handed_over, direct)
        labels = {}
        for run in (handed_over, direct):
            submitted = await reach(client, run, "Submitting", "Pending", "InfrastructurePending", seconds=SECONDS)
            while not submitted.labels.get("prefect.worker.type"):
                submitted = await client.read_flow_run(run.id)
            labels[run.id] = submitted.labels
            assert submitted.infrastructure_pid or submitted.state_name
    assert (await client.read_flow_run(thinking.id)).state_name == "Scheduled"
    assert len(kubernetes.jobs) == 2
    for job, run in zip(jobs, (handed_over, direct), strict=True):
        container = container_of(job)
        assert job["metadata"]["namespace"] == "flows"
        assert job["spec"]["backoffLimit"] == 0
        assert (container["image"], container["args"]) == ("timestep:gpu", ["job"])
        assert AUTH not in json.dumps(job)
        variables = {entry["name"]: entry for entry in container["env"]}
        assert len(variables) == len(container["env"])
        assert not {"PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"} & variables.keys()
        assert variables["TIMESTEP_PREFECT_AUTH"]["valueFrom"]["secretKeyRef"]["key"] == "auth"
        assert variables["PREFECT__FLOW_RUN_ID"]["value"] == str(run.id)
        assert variables["PREFECT_API_URL"]["value"] == cluster.settings.prefect_api
        assert variables["PREFECT_LOGGING_LEVEL"]["value"] == "DEBUG"
        assert variables["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"]["value"] == "reschedule"
        assert labels[run.id]["prefect.worker.type"] == "kubernetes"
        pod_labels = job["spec"]["template"]["metadata"]["labels"]
        assert pod_labels["prefect.io/flow-run-id"] == str(run.id)
    assert "MINE" in {entry["name"] for entry in container_of(jobs[0])["env"]}
    assert jobs[0]["metadata"]["labels"]["prefect.io/work-pool-name"] == "timestep"
    assert jobs[1]["metadata"]["labels"]["prefect.io/work-pool-name"] == TRAINING_POOL


async def test_a_jobs_pod_completes_its_settings_runs_its_flow_run_and_gives_it_back_when_it_is_evicted(
    cluster: Cluster, client: PrefectClient, kubernetes: Kubernetes, tmp_path: Path
) -> None:
    await register(cluster)
    await delete_runs(client)
    runs = [await trigger(client, "training", seconds=seconds) for seconds in (0, 600)]
    async with pod_workers(cluster):
        jobs = await jobs_of(kubernetes, *runs)
    for job, run in zip(jobs, runs, strict=True):
        container = container_of(job)
        # As Kubernetes starts it, which looks up the Secret.
        variables = {entry["name"]: entry.get("value", AUTH) for entry in container["env"]}
        pod = cluster.pod(*container["args"], **variables | {"TIMESTEP_HOME": str(tmp_path / str(run.id))})
        try:
            if run is runs[1]:
                await reach(client, run, "Running", seconds=SECONDS)
                pod.send_signal(signal.SIGTERM)
            output = (await asyncio.to_thread(pod.communicate, timeout=SECONDS))[0]
        finally:
            await asyncio.to_thread(end, pod)
        assert pod.returncode == 0, output
        await reach(client, run, "AwaitingRetry" if run is runs[1] else "Completed", seconds=1)


async def test_the_training_pools_limit_holds_for_runs_of_both_pools(
    cluster: Cluster, client: PrefectClient, kubernetes: Kubernetes
) -> None:
    await register(cluster)
    await delete_runs(client)
    await client.update_work_pool(TRAINING_POOL, WorkPoolUpdate(concurrency_limit=2))
    under_way = await trigger(client, "training", state=Pending())
    await client.set_flow_run_state(under_way.id, Running(), force=True)
    waiting = [await trigger(client, "training", pool=pool) for pool in ("timestep", TRAINING_POOL, "timestep")]
    try:
        async with pod_workers(cluster):
            await asyncio.to_thread(wait_for, lambda: len(kubernetes.jobs) > 0, SECONDS)
            await asyncio.sleep(2)
            assert len(kubernetes.jobs) == 1
            # A place is free again, and then none while the pool is paused.
            await client.delete_flow_run(under_way.id)
            await asyncio.to_thread(wait_for, lambda: len(kubernetes.jobs) == 2, SECONDS)
            await client.update_work_pool(TRAINING_POOL, WorkPoolUpdate(is_paused=True, concurrency_limit=None))
            await asyncio.sleep(2)
            assert len(kubernetes.jobs) == 2
            await client.update_work_pool(TRAINING_POOL, WorkPoolUpdate(is_paused=False))
            await jobs_of(kubernetes, *waiting)
    finally:
        await client.update_work_pool(TRAINING_POOL, WorkPoolUpdate(is_paused=False, concurrency_limit=None))


async def test_a_run_that_is_started_again_leaves_no_pod_waiting(
    cluster: Cluster, client: PrefectClient, kubernetes: Kubernetes
) -> None:
    await register(cluster)
    await delete_runs(client)
    run = await trigger(client, "training")
    async with pod_workers(cluster):
        (first,) = await jobs_of(kubernetes, run)
        while not (await client.read_flow_run(run.id)).infrastructure_pid:
            await asyncio.sleep(0.1)
        await client.set_flow_run_state(run.id, Scheduled(), force=True)
        name = first["metadata"]["name"]
        await asyncio.to_thread(wait_for, lambda: len(kubernetes.jobs) == 1 and name not in kubernetes.jobs, SECONDS)

        # One that runs is left to itself: its pod would say at its end that the run is to be started again.
        (second,) = kubernetes.jobs.values()
        second["status"]["ready"] = 1
        await client.set_flow_run_state(run.id, Scheduled(), force=True)
        await asyncio.to_thread(wait_for, lambda: len(kubernetes.jobs) == 2, SECONDS)


@pytest.mark.long
async def test_runs_of_ones_own_kind_are_found_behind_a_page_of_others(
    cluster: Cluster, client: PrefectClient, kubernetes: Kubernetes
) -> None:
    await register(cluster)
    await delete_runs(client)
    await trigger(client, "inference", count=PAGE)
    run = await trigger(client, "training")
    with cluster.prefect_settings():
        async with PodWorker("timestep", name="pod-1", takes=is_training) as worker:
            found = await worker._get_scheduled_flow_runs()
    assert run.id in {entry.flow_run.id for entry in found}


def test_without_warm_workers_or_a_training_pool() -> None:
    run = FlowRun(flow_id="5b0d5a5e-0000-4000-8000-000000000000", parameters={"mode": "training"})
    assert leftover(Settings(warm=False)) is any_run
    assert leftover(Settings(warm=True, training_pool="t")) is is_training
    assert not leftover(Settings(warm=True))(run)
