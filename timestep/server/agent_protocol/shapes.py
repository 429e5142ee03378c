"""What the Agent Protocol sends and takes (its specification, v1, components/schemas)."""

from enum import StrEnum
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

CurrentPage = Annotated[int, Query(ge=1, lt=2**31, description="Page number.")]
PageSize = Annotated[int, Query(ge=1, le=1000, description="Items on a page.")]


class Pagination(BaseModel):
    """Which page of how many."""

    total_items: int
    total_pages: int
    current_page: int
    page_size: int

    @classmethod
    def of(cls, total: int, current_page: int, page_size: int) -> "Pagination":
        """The page ``current_page`` of ``total`` items; one behind the last is empty."""
        pages = -(-total // page_size)
        return cls(total_items=total, total_pages=pages, current_page=current_page, page_size=page_size)


class Request(BaseModel):
    """What a task or a step is asked to do. ``additional_input`` is any object; the agent is given it as JSON."""

    input: str | None = None
    additional_input: dict[str, Any] | None = None


class TaskRequestBody(Request):
    """A new task. Its input is that of its first step."""


class StepRequestBody(Request):
    """A step. Without an input it goes on with the task."""


class Artifact(BaseModel):
    """A file of a task, submitted to the agent or made by it. Both names are labels; no path is made of them."""

    artifact_id: str
    agent_created: bool
    file_name: str
    relative_path: str | None = None


class Task(BaseModel):
    """A task."""

    task_id: str
    input: str | None = None
    additional_input: dict[str, Any] = Field(default_factory=dict)
    artifacts: list[Artifact] = Field(default_factory=list)


class Status(StrEnum):
    """Where a step stands: not begun, not ended, or ended, in whichever way."""

    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"


class Step(BaseModel):
    """A step. ``additional_output`` says more than the protocol: whether it succeeded, and what it waits for."""

    step_id: str = Field(description="Of the Prefect flow run, and of /v1/steps.")
    task_id: str
    name: str | None = None
    input: str | None = None
    additional_input: dict[str, Any] = Field(default_factory=dict)
    status: Status
    output: str | None = Field(None, description="The agent's final output, or why the step failed.")
    additional_output: dict[str, Any] | None = None
    artifacts: list[Artifact] = Field(default_factory=list)
    is_last: bool = Field(description="Whether it has ended and none came after it.")


class TaskListResponse(BaseModel):
    """A page of tasks."""

    tasks: list[Task]
    pagination: Pagination


class TaskStepsListResponse(BaseModel):
    """A page of a task's steps."""

    steps: list[Step]
    pagination: Pagination


class TaskArtifactsListResponse(BaseModel):
    """A page of a task's artifacts."""

    artifacts: list[Artifact]
    pagination: Pagination


class NotFound(BaseModel):
    """What isn't there."""

    message: str


class Unprocessable(BaseModel):
    """Why a request can't be meant."""

    message: str
