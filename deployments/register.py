"""Tells Prefect what there is: the result storage block, the work pools, and what `prefect.yaml` declares.

Registering again changes what is declared and keeps what a person chose in the UI: whether a schedule is
active, a paused deployment or pool, a pool's limit, schedules added by hand.

`python -m deployments.register` does it for a cluster, whose pools and further schedules lie in a folder of files.
"""

import argparse
import asyncio
import hashlib
import importlib
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, ParameterTypeError
from prefect.schedules import Schedule
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from deployments.pools import until_healthy
from storage.block import save_default
from timestep.agents.registry import AgentRegistry, load_registry
from timestep.database.engine import Database
from timestep.errors import TimestepError, UsageError
from timestep.models.registry import ModelRegistry
from timestep.settings import Settings, load_settings

FOLDER = Path("/etc/timestep/register")
BASE_TEMPLATE, TRAINING_TEMPLATE = "base-job-template.json", "training-job-template.json"
SCHEDULES = "schedules.json"
KUBERNETES = "kubernetes"
API_SECONDS = 300.0  # for the Prefect server to come up

# Of the schedules that a cluster's values declare: those that they don't any more are known by it, and go.
VALUES = "values-"


async def register(settings: Settings, agents: AgentRegistry) -> None:
    """Everything, for a service on one machine."""
    await asyncio.gather(save_default(settings), _declare_models(settings, agents), _register_locally(settings))


async def register_in_cluster(settings: Settings, agents: AgentRegistry, folder: Path) -> None:
    """Everything, for a service whose flow runs may get pods of their own; see the chart for the folder.

    Raises:
        UsageError: a file that is missing or can't be meant; a pool of the same name that is not for pods.
        ServiceUnavailableError: no Prefect server, or no database.
    """
    templates = {settings.work_pool: _read(folder / BASE_TEMPLATE)}
    if settings.training_pool is not None:
        templates.setdefault(settings.training_pool, _read(folder / TRAINING_TEMPLATE))
    deployments = with_schedules(declared_deployments(), _read(folder / SCHEDULES))
    await until_healthy(settings, API_SECONDS)
    # The block first: from the first deployment on, there may be runs.
    await asyncio.gather(save_default(settings), _declare_models(settings, agents))
    async with get_client() as client:
        for name, template in templates.items():
            await sync_work_pool(client, name, template)
        for declared in deployments:
            await register_deployment(client, declared, settings.work_pool)


async def _register_locally(settings: Settings) -> None:
    async with get_client() as client:
        await register_work_pool(client, settings.work_pool)
        work = (register_deployment(client, declared, settings.work_pool) for declared in declared_deployments())
        await asyncio.gather(*work)


async def _declare_models(settings: Settings, agents: AgentRegistry) -> None:
    """Each agent with a local model gets a model of its own name, on its base."""
    database = Database(str(settings.database_url))
    try:
        registry = ModelRegistry(database)
        for name in agents.names():
            if (base := agents.base(name)) is not None:
                await registry.declare(name, base)
    finally:
        await database.close()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"File '{path}' can't be read: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"File '{path}' holds no JSON object.")
    return content


def declared_deployments() -> list[dict[str, Any]]:
    """The deployments of `prefect.yaml`: beside this package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent
    path = next((p for p in (here / "prefect.yaml", here.parent / "prefect.yaml") if p.exists()), None)
    if path is None:
        raise UsageError(f"No prefect.yaml in '{here}' or above it: the installation is incomplete.")
    deployments: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    return deployments


def module_entrypoint(entrypoint: str) -> str:
    """``flows/step.py:step`` as ``flows.step.step``: imported from what is installed, wherever the worker runs."""
    file, function = entrypoint.split(":")
    return ".".join([*Path(file).with_suffix("").parts, function])


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """The flow of a module entrypoint."""
    module, _, name = entrypoint.rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert isinstance(flow, Flow)
    return flow


async def register_work_pool(client: PrefectClient, name: str) -> None:
    """Make the work pool unless it exists. It's of Prefect's own type, so that stock workers can serve it too."""
    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        await client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


async def sync_work_pool(client: PrefectClient, name: str, template: dict[str, Any]) -> None:
    """Make a work pool of pods, or bring its template up to date; a person's pause and limit stay."""
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=name, type=KUBERNETES, base_job_template=template))
        return
    if pool.type != KUBERNETES:
        raise UsageError(f"Work pool '{name}' is of type '{pool.type}', not '{KUBERNETES}'. Delete it, and try again.")
    if pool.base_job_template != template:
        await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


async def register_deployment(client: PrefectClient, declared: dict[str, Any], work_pool: str) -> None:
    """Create or update one deployment from its declaration."""
    entrypoint = module_entrypoint(declared["entrypoint"])
    flow = load_flow(entrypoint)
    flow_id = await client.create_flow(flow)
    existing = await _existing(client, f"{flow.name}/{declared['name']}")
    await client.create_deployment(
        flow_id,
        declared["name"],
        description=declared.get("description"),
        parameters=declared.get("parameters"),
        tags=declared.get("tags"),
        work_pool_name=work_pool,
        work_queue_name=declared.get("work_pool", {}).get("work_queue_name"),
        job_variables=declared.get("work_pool", {}).get("job_variables"),
        entrypoint=entrypoint,
        pull_steps=[],  # not None, which would leave those of an earlier `prefect deploy`
        parameter_openapi_schema=parameter_schema(flow).model_dump(exclude_unset=True),
        enforce_parameter_schema=True,
        schedules=merge_schedules(declared.get("schedules") or [], existing.schedules if existing else []),
        concurrency_limit=declared.get("concurrency_limit"),
    )


def with_schedules(declared: list[dict[str, Any]], schedules: dict[str, Any]) -> list[dict[str, Any]]:
    """The declared deployments, each with further schedules by its name, whose slugs are marked as the values'.

    Raises:
        UsageError: a schedule that can't be meant, or of no deployment.
    """
    names = [deployment["name"] for deployment in declared]
    for name in schedules:
        if name not in names:
            raise UsageError(f"Schedules of '{name}': no such deployment. Deployments: {', '.join(names)}.")
    found = []
    for deployment in declared:
        flow = load_flow(module_entrypoint(deployment["entrypoint"]))
        further = [_marked(flow, fields) for fields in schedules.get(deployment["name"]) or []]
        found.append({**deployment, "schedules": [*(deployment.get("schedules") or []), *further]})
    return found


def _marked(flow: Flow[..., Any], fields: Any) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise UsageError(
            f"Schedule '{fields}' of '{flow.name}' can't be meant: it's no object with a cron or interval."
        )
    # Without a slug, what it says tells whether it is the same.
    said = json.dumps({name: value for name, value in fields.items() if name != "active"}, sort_keys=True)
    slug = fields.get("slug") or hashlib.sha256(said.encode()).hexdigest()[:8]
    try:
        _schedule(fields)
        flow.validate_parameters(fields.get("parameters") or {})
    except (TypeError, ValueError, ParameterTypeError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"Schedule '{slug}' of '{flow.name}' can't be meant: {why}") from error
    return {**fields, "slug": VALUES + slug}


def merge_schedules(
    declared: list[dict[str, Any]], existing: list[DeploymentSchedule]
) -> list[DeploymentScheduleCreate]:
    """Declared schedules, each as active as the existing one of its slug; then those that a person added."""
    known = {schedule.slug: schedule for schedule in existing if schedule.slug}
    merged = [DeploymentScheduleCreate.from_schedule(_schedule(fields)) for fields in declared]
    for schedule in merged:
        if schedule.slug in known:
            schedule.active = known[schedule.slug].active
    ours = {schedule.slug for schedule in merged}
    kept = [
        DeploymentScheduleCreate.model_validate(
            schedule.model_dump(include={"schedule", "active", "max_scheduled_runs", "parameters", "slug"})
        )
        for schedule in existing
        if not schedule.slug or (schedule.slug not in ours and not schedule.slug.startswith(VALUES))
    ]
    return merged + kept


def _schedule(fields: dict[str, Any]) -> Schedule:
    interval = fields.get("interval")
    return Schedule(**{**fields, **({"interval": timedelta(seconds=interval)} if interval else {})})


async def _existing(client: PrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Register once; the exit code."""
    parser = argparse.ArgumentParser(prog="register", description="Tell Prefect what there is to run.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of templates and schedules")
    folder = parser.parse_args(arguments).folder
    settings = load_settings()
    try:
        asyncio.run(register_in_cluster(settings, load_registry(settings), folder))
    except TimestepError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    print("Registered: storage, models, work pools, deployments and their schedules.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
