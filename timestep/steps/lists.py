"""Steps by the page, by when they were started."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from timestep.agents.record.step_view import StepStatus, StepView
from timestep.agents.types import Mode
from timestep.database.engine import Database
from timestep.steps.views import pages, read, views

# One that crashed is started again.
_UNFINISHED = (
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CRASHED,
    StateType.CANCELLING,
)
# The states in which a flow run may be a step of this status.
_STATES = {
    StepStatus.NOT_STARTED: (StateType.SCHEDULED, StateType.PENDING),
    StepStatus.IN_PROGRESS: _UNFINISHED,
    StepStatus.WAITING_FEEDBACK: (StateType.PAUSED,),
    StepStatus.WAITING_APPROVAL: (StateType.PAUSED,),
    StepStatus.SUCCEEDED: (StateType.COMPLETED,),
    StepStatus.FAILED: (StateType.FAILED,),
    StepStatus.CANCELLED: (StateType.CANCELLED,),
}


@dataclass(frozen=True)
class Wanted:
    """Which steps: those for which all holds that is given."""

    status: StepStatus | None = None
    agent: str | None = None
    mode: Mode | None = None
    session_id: str | None = None

    def fits(self, step: StepView) -> bool:
        """Whether this is one of them."""
        pairs = (
            (self.status, step.status),
            (self.agent, step.agent),
            (self.mode, step.mode),
            (self.session_id, step.session_id),
        )
        return all(wanted in (None, found) for wanted, found in pairs)


async def listed(
    client: PrefectClient, database: Database, wanted: Wanted, count: int, after: UUID | None, *, descending: bool
) -> list[StepView]:
    """At most ``count`` steps behind the one that is ``after``, without what they returned.

    Prefect can't look into parameters: what it finds by state is looked through here, to the end where need be.

    Raises:
        NotFoundError: there is no step ``after``.
        ServiceUnavailableError: Prefect's server or the database is away.
    """
    last = None if after is None else await read(client, after)
    found: list[StepView] = []
    async for runs in _pages(client, wanted, last, descending=descending):
        found += [step for step in await views(database, runs) if wanted.fits(step)]
        if len(found) >= count:
            break
    return found[:count]


async def unfinished(client: PrefectClient) -> AsyncIterator[FlowRun]:
    """The flow runs of steps that have not ended. ServiceUnavailableError: Prefect's server is away."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(_UNFINISHED)))
    async for page in pages(client, FlowRunFilter(state=state)):
        for run in page:
            yield run


async def _pages(
    client: PrefectClient, wanted: Wanted, last: FlowRun | None, *, descending: bool
) -> AsyncIterator[list[FlowRun]]:
    """Flow runs of steps in order, those behind ``last``, some at a time."""
    since = None
    if last is not None and last.expected_start_time is not None:
        edge = {"before_" if descending else "after_": last.expected_start_time}
        since = FlowRunFilterExpectedStartTime(**edge)
    types = list(_STATES[wanted.status]) if wanted.status else None
    state = None if types is None else FlowRunFilterState(type=FlowRunFilterStateType(any_=types))
    chosen = FlowRunFilter(expected_start_time=since, state=state)
    sort = FlowRunSort.EXPECTED_START_TIME_DESC if descending else FlowRunSort.EXPECTED_START_TIME_ASC
    async for page in pages(client, chosen, sort=sort):
        # The edge is of those that are found; two that start in the same microsecond are told apart by their ids.
        yield [run for run in page if last is None or _behind(run, last, descending=descending)]


def _behind(run: FlowRun, last: FlowRun, *, descending: bool) -> bool:
    one, other = (run.expected_start_time, run.id), (last.expected_start_time, last.id)
    if one[0] is None or other[0] is None:
        return run.id != last.id
    return one < other if descending else one > other
