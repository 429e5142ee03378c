"""Tasks: made, listed, looked up."""

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import uuid4

from fastapi import Request

from timestep.errors import NotFoundError
from timestep.server import ids
from timestep.server.agent_protocol import artifact_rows
from timestep.server.agent_protocol.route import NOT_FOUND, protocol_router
from timestep.server.agent_protocol.shapes import (
    Artifact,
    CurrentPage,
    PageSize,
    Pagination,
    Task,
    TaskListResponse,
    TaskRequestBody,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from timestep.database.models import ArtifactRow, TaskRow

router = protocol_router()


@router.post("", operation_id="createAgentTask", summary="Create a task for the agent.")
async def create(request: Request, body: TaskRequestBody | None = None) -> Task:
    """A task, of which no step is executed yet."""
    from timestep.database.models import TaskRow

    asked = body or TaskRequestBody()
    row = TaskRow(id=str(uuid4()), input=asked.input, additional_input=asked.additional_input)
    async with (await request.app.state.housekeeper.database()).session() as session:
        session.add(row)
    return view(row, ())


@router.get("", operation_id="listAgentTasks", summary="List all tasks that were created for the agent.")
async def listed(request: Request, current_page: CurrentPage = 1, page_size: PageSize = 10) -> TaskListResponse:
    """The tasks, oldest first."""
    from sqlalchemy import func, select

    from timestep.database.models import TaskRow

    async with (await request.app.state.housekeeper.database()).session() as session:
        total = await session.scalar(select(func.count()).select_from(TaskRow)) or 0
        chosen = select(TaskRow).order_by(TaskRow.number).limit(page_size).offset((current_page - 1) * page_size)
        rows = list(await session.scalars(chosen))
        artifacts = await artifact_rows.of_tasks(session, [row.id for row in rows])
    tasks = [view(row, artifacts[row.id]) for row in rows]
    return TaskListResponse(tasks=tasks, pagination=Pagination.of(total, current_page, page_size))


@router.get("/{task_id}", operation_id="getAgentTask", summary="Get a task.", responses=NOT_FOUND)
async def get(task_id: str, request: Request) -> Task:
    """The task with its artifacts."""
    async with (await request.app.state.housekeeper.database()).session() as session:
        row = await find(session, task_id)
        return view(row, (await artifact_rows.of_tasks(session, [row.id]))[row.id])


async def find(session: "AsyncSession", task_id: str, *, lock: bool = False) -> "TaskRow":
    """The task; ``lock`` keeps it for this transaction. NotFoundError: there is none."""
    from timestep.database.models import TaskRow

    row = await session.get(TaskRow, ids.known_id("task", task_id), with_for_update=lock)
    if row is None:
        raise NotFoundError("task", task_id)
    return row


def view(row: "TaskRow", artifacts: Iterable["ArtifactRow"]) -> Task:
    """A task as clients see it."""
    return Task(
        task_id=row.id,
        input=row.input,
        additional_input=row.additional_input or {},
        artifacts=[artifact(one) for one in artifacts],
    )


def artifact(row: "ArtifactRow") -> Artifact:
    """An artifact as clients see it."""
    return Artifact(
        artifact_id=row.id, agent_created=row.agent_created, file_name=row.file_name, relative_path=row.relative_path
    )
