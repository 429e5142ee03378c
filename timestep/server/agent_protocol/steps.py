"""Steps of a task: executed, listed, looked up. Each is a flow run, whose state is looked up when it is asked for."""

import asyncio
import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fastapi import Request

from timestep.agents.record.step_view import ENDED, StepStatus, StepView
from timestep.errors import NotFoundError
from timestep.server import ids
from timestep.server.agent_protocol import artifact_rows, tasks
from timestep.server.agent_protocol.execution import execute
from timestep.server.agent_protocol.route import NOT_FOUND, protocol_router
from timestep.server.agent_protocol.shapes import (
    CurrentPage,
    PageSize,
    Pagination,
    Status,
    Step,
    StepRequestBody,
    TaskStepsListResponse,
)
from timestep.server.records import Housekeeper, Records

if TYPE_CHECKING:
    from timestep.database.models import ArtifactRow, TaskStepRow

router = protocol_router()

AT_ONCE = 8  # steps of a page that are looked up at the same time


@router.get(
    "/{task_id}/steps", operation_id="listAgentTaskSteps", summary="List the steps of a task.", responses=NOT_FOUND
)
async def listed(
    task_id: str, request: Request, current_page: CurrentPage = 1, page_size: PageSize = 10
) -> TaskStepsListResponse:
    """The steps, oldest first."""
    from sqlalchemy import func, select

    from timestep.database.models import TaskStepRow

    records = await request.app.state.housekeeper.records()
    async with records.database.session() as session:
        task = await tasks.find(session, task_id)
        mine = TaskStepRow.task_id == task.id
        total = await session.scalar(select(func.count()).where(mine)) or 0
        last = await session.scalar(select(func.max(TaskStepRow.number)).where(mine))
        page = select(TaskStepRow).where(mine).order_by(TaskStepRow.number)
        rows = list(await session.scalars(page.limit(page_size).offset((current_page - 1) * page_size)))
        artifacts = await artifact_rows.of_steps(session, [row.id for row in rows])
    free = asyncio.Semaphore(AT_ONCE)

    async def one(row: "TaskStepRow") -> Step:
        async with free:
            return view(row, await seen(records, row), artifacts[row.id], newest=row.number == last)

    steps = await asyncio.gather(*map(one, rows))
    return TaskStepsListResponse(steps=steps, pagination=Pagination.of(total, current_page, page_size))


@router.post(
    "/{task_id}/steps", operation_id="executeAgentTaskStep", summary="Execute a step of a task.", responses=NOT_FOUND
)
async def execute_step(task_id: str, request: Request, body: StepRequestBody | None = None) -> Step:
    """Starts a step and answers when it has ended; after 50 seconds, or when it waits for a person, as it stands then.

    A step that hasn't ended goes on: ask for it by its id, or execute another step **without an input**, which waits
    for the one that runs. Without an input, and with nothing running, a first step has the task's input, one after a
    step that failed has that one's, and any other goes on with the task. A step **with** an input that comes while
    another runs is queued behind it.
    """
    housekeeper: Housekeeper = request.app.state.housekeeper
    records = await housekeeper.records()
    step_id = await execute(request, records, task_id, body or StepRequestBody(), housekeeper.leaving)
    return await get(task_id, step_id, request)


@router.get(
    "/{task_id}/steps/{step_id}", operation_id="getAgentTaskStep", summary="Get a step of a task.", responses=NOT_FOUND
)
async def get(task_id: str, step_id: str, request: Request) -> Step:
    """The step as it stands."""
    from sqlalchemy import func, select

    from timestep.database.models import TaskStepRow

    records = await request.app.state.housekeeper.records()
    async with records.database.session() as session:
        task = await tasks.find(session, task_id)
        row = await session.get(TaskStepRow, ids.known_id("step", step_id))
        if row is None or row.task_id != task.id:
            raise NotFoundError("step", step_id)
        last = await session.scalar(select(func.max(TaskStepRow.number)).where(TaskStepRow.task_id == task.id))
        artifacts = (await artifact_rows.of_steps(session, [row.id]))[row.id]
    return view(row, await seen(records, row), artifacts, newest=row.number == last)


async def seen(records: Records, row: "TaskStepRow") -> StepView | None:
    """The step as /v1/steps shows it; None where its flow run was deleted."""
    from timestep import steps

    try:
        return await steps.view(records.client, records.database, UUID(row.id), records.storage_url)
    except NotFoundError:
        return None


def view(row: "TaskStepRow", step: StepView | None, artifacts: list["ArtifactRow"], *, newest: bool) -> Step:
    """A step as clients of the protocol see it."""
    status = step.status if step else StepStatus.CANCELLED
    over = status in ENDED
    shown = {StepStatus.NOT_STARTED: Status.CREATED}.get(status, Status.RUNNING)
    return Step(
        step_id=row.id,
        task_id=row.task_id,
        name=row.name,
        input=row.input,
        additional_input=row.additional_input or {},
        status=Status.COMPLETED if over else shown,
        output=_text(step.output if step.error is None else step.error) if step else "The flow run was deleted.",
        additional_output=_more(step) if step else {"status": status},
        artifacts=[tasks.artifact(one) for one in artifacts],
        is_last=over and newest,
    )


def _text(output: Any) -> str | None:
    return output if isinstance(output, str | None) else json.dumps(output, ensure_ascii=False)


def _more(step: StepView) -> dict[str, Any]:
    said: dict[str, Any] = {"status": step.status, "error": step.error}
    if step.pending:
        said["pending"] = [call.model_dump(mode="json", by_alias=True) for call in step.pending]
    if step.result is not None:
        said |= {key: step.result.get(key) for key in ("model", "turns", "tool_calls", "usage", "seconds")}
    return said
