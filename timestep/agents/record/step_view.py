"""A step as people know it, as plain data: without Prefect, which takes a second to import."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from timestep.agents.record.approvals import Asked
from timestep.agents.record.waiting import Decision, PendingCall, Verdict
from timestep.agents.types import Mode


class StepStatus(StrEnum):
    """Where a step stands. One that crashed is in progress: the service starts it again."""

    NOT_STARTED = "not_started"
    IN_PROGRESS = "in_progress"
    WAITING_FEEDBACK = "waiting_feedback"
    WAITING_APPROVAL = "waiting_approval"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED)


class PendingView(PendingCall):
    """A call that waits for a person, with the verdicts it takes; a decision can name the digest it is meant for."""

    verdicts: list[Verdict]
    call_digest: str = Field(serialization_alias="digest")
    deadline_at: datetime | None = None


class StepView(BaseModel):
    """A step as it stands. ``output`` is the agent's, ``result`` all that the step returned; a list has neither."""

    id: str = Field(description="Of the Prefect flow run.")
    object: Literal["step"] = "step"
    status: StepStatus
    state: str = Field(description="Prefect's name of the flow run's state.")
    name: str
    agent: str
    mode: Mode
    session_id: str | None = None
    created: datetime | None
    started: datetime | None
    ended: datetime | None
    attempt: int = Field(description="How often a process took the step up; more than once after crashes and waits.")
    pending: list[PendingView] = Field(default_factory=list)
    decided: list[Asked] = Field(default_factory=list)
    output: Any = None
    result: dict[str, Any] | None = None
    error: str | None = None


class CallDecision(Decision):
    """A decision of one call, by id or position; without either, of the only one that waits.

    ``digest``, if given, must be that of the call as it waits now.
    """

    model_config = ConfigDict(extra="forbid")

    call: str | None = None
    digest: str | None = None
