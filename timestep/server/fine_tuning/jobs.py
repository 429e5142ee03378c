"""The routes of fine-tuning jobs. A job is paused as its flow run is suspended, and holds no worker then."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Query, Request
from openai.types.fine_tuning import FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from timestep.errors import ConflictError, NotFoundError, NotSupportedError, ParameterError
from timestep.models.routing import CHECKPOINTS, bases
from timestep.models.routing import PREFIX as LOCAL
from timestep.server import run_lists
from timestep.server.agents import roster
from timestep.server.documented import errors
from timestep.server.fine_tuning import events, views
from timestep.server.fine_tuning.asked import CreateJob
from timestep.server.fine_tuning.views import KIND, PREFIX, TAG, Job
from timestep.server.pages import After, Limit, Page, page
from timestep.server.records import Housekeeper, Records, Shelves
from timestep.server.refusals import known_query
from timestep.settings import Settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from timestep.models.registry import ModelRegistry

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

DEPLOYMENT = "step/step"
KNOWN = [Depends(known_query)]  # of all routes but the list, whose query has names of its own
PAUSE_SECONDS = 20.0  # a run that is just being started is paused once it has


@router.post("", summary="Create a fine-tuning job", responses=errors(404, 409), dependencies=KNOWN)
async def create(body: CreateJob, request: Request) -> Job:
    """Start a step that learns; its result answers by its name as soon as the job has succeeded."""
    from timestep.models.registry import ModelRegistry

    housekeeper: Housekeeper = request.app.state.housekeeper
    shelves = await housekeeper.shelves()
    registry = ModelRegistry(shelves.database)
    lines = await registry.names()
    parameters, labels = body.parameters(lines), run_lists.labels(body.metadata)
    await _check_suffix(request, body.suffix)
    await _check_files(shelves, body)
    await _check_model(registry, lines, body.model, request.app.state.settings)
    records = await housekeeper.records()
    run = await records.starts.start(records.client, DEPLOYMENT, parameters, tags=[TAG], labels=labels)
    return await _view(records, run)


@router.get("", summary="List fine-tuning jobs", response_model=Page[Job], responses=errors(404))
async def list_jobs(request: Request, limit: Limit = 20, after: After = None) -> object:
    """Jobs, the newest first. ``metadata[key]=value`` chooses those that have it."""
    housekeeper: Housekeeper = request.app.state.housekeeper
    records = await housekeeper.records()
    last = None if after is None else await run_lists.read(records, TAG, PREFIX, after, KIND)
    found = await run_lists.newest(records, TAG, limit, last, _wanted(request))
    return page(await views.views(records.database, found), limit)


@router.get("/{job_id}", summary="Get a fine-tuning job", responses=errors(404), dependencies=KNOWN)
async def get_job(job_id: str, request: Request) -> Job:
    """The job as it stands."""
    return await _view(*await _found(request, job_id))


@router.post("/{job_id}/cancel", summary="Cancel a fine-tuning job", responses=errors(404, 409), dependencies=KNOWN)
async def cancel(job_id: str, request: Request) -> Job:
    """Have the job stopped within seconds; no version comes of it."""
    from timestep import steps

    records, run = await _found(request, job_id)
    _refuse(run, job_id, "cancelled")
    await steps.cancel(records.client, records.database, run.id)
    return await get_job(job_id, request)


@router.post("/{job_id}/pause", summary="Pause a fine-tuning job", responses=errors(404, 409), dependencies=KNOWN)
async def pause(job_id: str, request: Request) -> Job:
    """Have the job stop at once, and let go of its worker; its finished epochs are kept."""
    from timestep import runs
    from timestep.steps.views import answering

    records, run = await _found(request, job_id)
    _refuse(run, job_id, "paused")
    async with answering(records.client, PAUSE_SECONDS):
        await runs.pause(records.client, run.id)
    return await get_job(job_id, request)


@router.post("/{job_id}/resume", summary="Resume a fine-tuning job", responses=errors(404, 409), dependencies=KNOWN)
async def resume(job_id: str, request: Request) -> Job:
    """Have a paused job go on with the epoch after its last finished one."""
    from timestep import runs
    from timestep.steps.views import answering

    records, run = await _found(request, job_id)
    async with answering(records.client):
        if not await runs.resume(records.client, run.id):
            raise ConflictError(f"Fine-tuning job '{job_id}' is not paused.")
    return await get_job(job_id, request)


@router.get(
    "/{job_id}/events",
    summary="List a job's events",
    response_model=Page[FineTuningJobEvent],
    responses=errors(404),
    dependencies=KNOWN,
)
async def list_events(job_id: str, request: Request, limit: Limit = 20, after: After = None) -> object:
    """What happened, the newest first: messages, and metrics of the training."""
    records, run = await _found(request, job_id)
    return page(await events.job_events(records.database, run, limit, after), limit)


@router.get(
    "/{job_id}/checkpoints",
    summary="List a job's checkpoints",
    response_model=Page[FineTuningJobCheckpoint],
    responses=errors(404),
    dependencies=KNOWN,
)
async def list_checkpoints(
    job_id: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, description="Objects on a page.")] = 10,
    after: After = None,
) -> object:
    """The checkpoints that can be asked by their names, the newest first: a finished epoch each.

    While the job goes on all are there; once it has succeeded, that of the last epoch, which is its result.
    """
    records, run = await _found(request, job_id)
    shelves = await request.app.state.housekeeper.shelves()
    stored = {found.key async for found in shelves.store.list(f"{CHECKPOINTS}/{run.id}/")}
    found = views.checkpoints(run, (await views.trained(records.database, [run.id]))[run.id], stored)
    if after is not None:
        names = [checkpoint.id for checkpoint in found]
        if after not in names:
            raise NotFoundError("checkpoint", after[:100])
        found = found[names.index(after) + 1 :]
    return page(found, limit)


def _wanted(request: Request) -> dict[str, str]:
    """The metadata that a list's jobs have. NotSupportedError: something else is asked."""
    wanted = {}
    for name, value in request.query_params.items():
        if name.startswith("metadata[") and name.endswith("]"):
            wanted[name.removeprefix("metadata[").removesuffix("]")] = value
        elif name not in ("limit", "after"):
            raise NotSupportedError(name[:100])
    return wanted


async def _found(request: Request, job_id: str) -> tuple[Records, FlowRun]:
    housekeeper: Housekeeper = request.app.state.housekeeper
    records = await housekeeper.records()
    return records, await run_lists.read(records, TAG, PREFIX, job_id, KIND)


async def _view(records: Records, run: FlowRun) -> Job:
    return (await views.views(records.database, [run]))[0]


def _refuse(run: FlowRun, job_id: str, what: str) -> None:
    state = run.state
    if state is not None and (state.is_completed() or state.is_failed()):
        ended = "succeeded" if state.is_completed() else "failed"
        raise ConflictError(f"Fine-tuning job '{job_id}' has {ended}: it can't be {what}.")


async def _check_suffix(request: Request, suffix: str | None) -> None:
    """Refuse a name that means something else already. ParameterError: whose it is."""
    from timestep.models.routing import taken_names

    if suffix is None:
        return
    if suffix in taken_names(request.app.state.settings):
        raise ParameterError("suffix", f"is '{suffix}', a model that was not trained here. Choose another name.")
    if suffix in {agent.id for agent in (await roster(request)).agents}:
        raise ParameterError("suffix", f"is '{suffix}', which is an agent's name. Train the agent, or choose another.")


async def _check_files(shelves: Shelves, body: CreateJob) -> None:
    """Refuse at once what the step would refuse: files that aren't there, or are for something else."""
    from timestep.files import Files

    files = Files(shelves.database, shelves.store)
    for param, name in (("training_file", body.training_file), ("validation_file", body.validation_file)):
        if name is not None and (row := await files.get(name)).purpose != "fine-tune":
            raise ParameterError(param, f"is a file of the purpose '{row.purpose}', not 'fine-tune'.")


async def _check_model(registry: ModelRegistry, lines: Collection[str], named: str, settings: Settings) -> None:
    """Refuse at once a model that isn't there."""
    model, at, version = named.removeprefix(LOCAL).partition("@")
    if at and model in lines and version.isdecimal() and len(version) < 10:
        await registry.get(model, int(version))
    elif (f"{model}{at}{version}" if at else model) not in {*lines, *(known := bases(settings))}:
        raise NotFoundError("model", named, [*(f"{LOCAL}{name}" for name in lines), *known])
