"""/v1/steps: started, listed and cancelled. What one is doing, and what it asks of people, is in :mod:`.steps`."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from timestep.agents.record.step_view import StepStatus, StepView
from timestep.agents.types import InferenceSettings, Mode, TrainingSettings
from timestep.errors import NotFoundError, ParameterError
from timestep.server.agents import roster
from timestep.server.documented import errors
from timestep.server.inference import refuse_files
from timestep.server.pages import After, Limit, Order, Page, page
from timestep.server.security.scopes import demand
from timestep.server.steps import scope_of, step_id, touched

router = APIRouter(prefix="/v1/steps", tags=["steps"])

_FILE = re.compile(r"file-[0-9a-f]{32}")

Key = Annotated[
    str | None,
    Header(max_length=200, description="Requests with the same key are one: the step that the first started."),
]


class StepRequest(BaseModel):
    """What a step is to do; the fields of the flow `step`."""

    model_config = ConfigDict(extra="forbid")

    input: str | list[dict[str, Any]] = Field("", description="Text, or OpenAI-style input items.")
    agent: str | None = Field(None, description="Name of a registered agent; empty for the default one.")
    mode: Mode = Field(Mode.INFERENCE, description="inference: the agent thinks. training: its model learns.")
    session_id: str | None = Field(None, description="Steps of one session share their conversation.")
    model: str | None = Field(None, description="Instead of the agent's own.")
    max_turns: int = Field(10, ge=1, description="Most model calls of the step.")
    inference: InferenceSettings | None = Field(None, description="Used in inference mode.")
    training: TrainingSettings | None = Field(None, description="Used in training mode.")


@router.post("", operation_id="createStep", summary="Start a step.", status_code=201, responses=errors(404))
async def create(body: StepRequest, request: Request, idempotency_key: Key = None) -> StepView:
    """Starts a step and answers at once; it goes on whatever becomes of this server. Watch it by its events."""
    from timestep import steps

    demand(request, scope_of(body.mode), "POST /v1/steps")
    _refuse_files(body)
    if body.mode is Mode.INFERENCE and not body.input:
        raise ParameterError("input", "is empty. Say what the agent should do.")
    there = await roster(request)
    names = [one.id for one in there.agents]
    if body.agent is not None and body.agent not in names:
        raise NotFoundError("agent", body.agent, names)
    records = await request.app.state.housekeeper.records()
    parameters = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    parameters = {"input": body.input, **parameters, "agent": body.agent or there.default}
    key = None if idempotency_key is None else f"v1/steps/{idempotency_key}"
    run = await records.starts.start(records.client, "step/step", parameters, idempotency_key=key)
    if key is not None and any(run.parameters.get(name) != value for name, value in parameters.items()):
        raise ParameterError("Idempotency-Key", f"was used for another step, '{run.id}'. Take a new one.")
    return await steps.view(records.client, records.database, run.id, records.storage_url)


def _refuse_files(body: StepRequest) -> None:
    """NotFoundError, ParameterError: a file of this machine or of storage, which are for its own people to name."""
    refuse_files(body.model or "")
    refuse_files(str(((body.inference and body.inference.request) or {}).get("model")))
    for part in ("dataset", "validation"):
        named = getattr(body.training, part, None)
        if named is None or _FILE.fullmatch(named):
            continue
        if part == "validation" or named != "traces":
            traces = "" if part == "validation" else "'traces' or "
            why = f"is '{named[:40]}'. Give {traces}the id of a file that was uploaded to /v1/files."
            raise ParameterError(f"training.{part}", why)


class Chosen(BaseModel):
    """Which steps a list has."""

    model_config = ConfigDict(extra="forbid")

    status: StepStatus | None = None
    agent: str | None = None
    mode: Mode | None = None
    session_id: str | None = None
    limit: Limit = 20
    after: After = None
    order: Order = "desc"


@router.get("", operation_id="listSteps", summary="List the steps.", responses=errors(404))
async def listed(request: Request, chosen: Annotated[Chosen, Query()]) -> Page[StepView]:
    """The steps for which all holds that is given, without what they returned; newest first, unless told otherwise."""
    from timestep import steps

    records = await request.app.state.housekeeper.records()
    after = None if chosen.after is None else step_id(chosen.after)
    wanted = steps.Wanted(chosen.status, chosen.agent, chosen.mode, chosen.session_id)
    found = await steps.listed(
        records.client, records.database, wanted, chosen.limit + 1, after, descending=chosen.order == "desc"
    )
    return Page[StepView](**page(found, chosen.limit))


@router.post("/{step}/cancel", operation_id="cancelStep", summary="Cancel a step.", responses=errors(404, 409))
async def cancel(step: str, request: Request) -> StepView:
    """Has the step end: at once where no process runs it, else within seconds. Answers with the step as it stands."""
    from timestep import steps

    records, run_id = await touched(request, step, "cancel")
    await steps.cancel(records.client, records.database, run_id)
    return await steps.view(records.client, records.database, run_id, records.storage_url)


class ResumeRequest(BaseModel):
    """How a step is started again."""

    model_config = ConfigDict(extra="forbid")

    accept_changes: bool = Field(
        False, description="Go on from the record although the code asks something else now than was recorded."
    )


@router.post("/{step}/resume", operation_id="resumeStep", summary="Start a step again.", responses=errors(404, 409))
async def resume(step: str, request: Request, body: ResumeRequest | None = None) -> StepView:
    """Starts a step again that failed or was cancelled: what it had finished is not done again."""
    from timestep import steps

    records, run_id = await touched(request, step, "resume")
    changes = body is not None and body.accept_changes
    await steps.resume(records.client, records.database, run_id, accept_changes=changes)
    return await steps.view(records.client, records.database, run_id, records.storage_url)
