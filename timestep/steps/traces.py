"""Traces of steps that ended while no process of theirs ran: cancelled, or given up, while they waited for people.

Whoever waits has written its trace before, and says so in it; nobody else is there to write how it ended.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from sqlalchemy import select

from storage.store import ObjectStore
from storage.traces import TraceStore
from timestep.agents.record.step_trace import WAITING
from timestep.database.engine import Database
from timestep.database.models import ApprovalRow, StepRow
from timestep.errors import NotFoundError
from timestep.steps.views import error_of, pages, read, status_of

RECENT = timedelta(hours=1)  # those that ended while every server was away for longer keep what they say
SETTLED = timedelta(seconds=15)  # by then a process that was cancelled has written its trace itself


class EndedTraces:
    """Completes them. Any number of servers may do so: each reads the trace first, and writes what is true."""

    def __init__(self, client: PrefectClient, database: Database, storage_url: str) -> None:
        self._client, self._database, self._storage_url = client, database, storage_url
        self._seen: set[tuple[UUID, UUID]] = set()  # runs and the states in which they were looked at

    async def complete(self) -> None:
        """Look at the steps that ended lately.

        Raises:
            ServiceUnavailableError: Prefect's server or the database is away.
            StorageError: storage is.
        """
        found = {(run.id, run.state.id): run for run in await self._ended() if run.state is not None}
        self._seen &= set(found)
        fresh = {seen: run for seen, run in found.items() if seen not in self._seen}
        asked = select(ApprovalRow.step_id).where(ApprovalRow.step_id.in_([str(run.id) for run in fresh.values()]))
        mine = select(StepRow.id, StepRow.created_at).where(StepRow.id.in_(asked))
        async with self._database.session() as session:
            began = {row.id: row.created_at for row in await session.execute(mine)}
        for seen, run in fresh.items():
            if str(run.id) in began:
                await self._complete(run, began[str(run.id)])
            self._seen.add(seen)

    async def _ended(self) -> list[FlowRun]:
        now = datetime.now(UTC)
        chosen = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLED, StateType.FAILED])),
            end_time=FlowRunFilterEndTime(after_=now - RECENT, before_=now - SETTLED),
        )
        return [run async for page in pages(self._client, chosen) for run in page]

    async def _complete(self, run: FlowRun, began: datetime) -> None:
        agent, step_id = str(run.parameters.get("agent") or "assistant"), str(run.id)
        traces = TraceStore(ObjectStore.open(self._storage_url))
        try:
            trace = await traces.read(traces.key(agent, step_id, began))
        except NotFoundError:
            return
        now = await read(self._client, run.id)  # a person may have started it again
        if trace.get("status") != WAITING or now.state is None or run.state is None or now.state.id != run.state.id:
            return
        ended = (run.end_time or run.state.timestamp).isoformat()
        trace |= {"status": status_of(run, []).value, "error": await error_of(run), "ended": ended}
        await traces.write(trace, agent=agent, step_id=step_id, when=began)
