"""The Kubernetes jobs that the worker makes of the chart's job templates."""

import asyncio
import uuid
from functools import cache
from typing import Any, cast

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.kubernetes import PodConfiguration
from tests.charts.rendering import Document, Pod, render

# What the worker itself holds while it makes a job.
AUTH = "timestep:canary-5f2d"


@cache
def manifests(case: str) -> dict[str, Document]:
    """The job that a flow run of each pool becomes, by the name of the pool's template."""
    return {name: job(template) for name, template in render(case).job_templates.items()}


def job(template: dict[str, Any], **variables: Any) -> Document:
    """The job that the worker makes of a base job template and a deployment's job variables."""

    async def make() -> Document:
        # Prefect asks its server only where a template names a block.
        client = cast(PrefectClient, object())
        configuration = await PodConfiguration.from_template_and_values(template, variables, client=client)
        configuration.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="wise-fox"))
        return cast(Document, configuration.job_manifest)

    with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api", PREFECT_API_AUTH_STRING: AUTH}):
        return asyncio.run(make())


@cache
def prepared_jobs(case: str) -> list[Pod]:
    """The pods of these jobs."""
    return [
        Pod(f"Job of {name}", made["spec"]["template"]["metadata"]["labels"], {}, made["spec"]["template"]["spec"])
        for name, made in manifests(case).items()
    ]


def chooses(selector: str, made: Document) -> bool:
    """Whether a label selector, as kubectl takes it, chooses a job."""
    wanted = dict(label.split("=") for label in selector.split(","))
    return bool(wanted.items() <= made["metadata"]["labels"].items())
