"""Tells Prefect what there is: the result storage block, the work pool, and what `prefect.yaml` declares.

Registering again changes what is declared and keeps what a person chose in the UI: whether a schedule is
active, a paused deployment, schedules added by hand.
"""

import importlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from timestep.errors import UsageError


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


def merge_schedules(
    declared: list[dict[str, Any]], existing: list[DeploymentSchedule]
) -> list[DeploymentScheduleCreate]:
    """Declared schedules, each as active as the existing one of its slug; then those that only exist."""
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
        if not schedule.slug or schedule.slug not in ours
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
