"""The results of batches that were stopped: cancelled or failed, they have no process that would write them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from timestep.errors import TimestepError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    from timestep.batches.record import Ended
    from timestep.server.records import Shelves

MARGIN = timedelta(minutes=5)  # for which clocks may differ


class StoppedBatches:
    """Writes them. Any number of servers may: each file is made once."""

    def __init__(self, client: PrefectClient, shelves: Callable[[], Awaitable[Shelves]]) -> None:
        self._client, self._shelves = client, shelves
        self._done: set[tuple[UUID, UUID]] = set()  # runs and the states in which they lack nothing
        self._since: datetime | None = None  # all that ended before is done

    async def write(self) -> None:
        """Look at the batches that ended since the last look; at first at all.

        Raises:
            TimestepError: a batch's results can't be written now; the others' are.
        """
        began, trouble, shelves = datetime.now(UTC), None, await self._shelves()
        for run in await self._stopped(shelves):
            try:
                await self._write(shelves, run)
            except TimestepError as error:  # the next look tries again
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        self._since = began - MARGIN

    async def _stopped(self, shelves: Shelves) -> list[FlowRun]:
        """The batches that lack their results."""
        from prefect.client.schemas.filters import (
            FlowRunFilter,
            FlowRunFilterEndTime,
            FlowRunFilterState,
            FlowRunFilterStateType,
            FlowRunFilterTags,
        )
        from prefect.client.schemas.objects import StateType

        from timestep.batches.record import standings
        from timestep.server.batch_views import TAG, lacks_results
        from timestep.steps.views import pages

        chosen = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[TAG]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLED, StateType.FAILED])),
            end_time=None if self._since is None else FlowRunFilterEndTime(after_=self._since),
        )
        found: list[FlowRun] = []
        done: set[tuple[UUID, UUID]] = set()
        async for page in pages(self._client, chosen, flows=None):
            known = {run.id for run in page if run.state is not None and (run.id, run.state.id) in self._done}
            fresh = [run.id for run in page if run.id not in known]
            standing = await standings(shelves.database, fresh) if fresh else {}
            lacking = [run for run in page if run.id in standing and lacks_results(run, standing[run.id])]
            found += lacking
            done |= {(run.id, run.state.id) for run in page if run.state is not None and run not in lacking}
        self._done = done
        return found

    async def _write(self, shelves: Shelves, run: FlowRun) -> None:
        from timestep.batches.record import note_stopped, standings
        from timestep.batches.results import ResultFiles
        from timestep.server.batch_views import lacks_results, settings_of
        from timestep.steps.views import answering

        standing = (await standings(shelves.database, [run.id]))[run.id]
        # After that, so that the attempt is the one that was stopped, and none that goes on.
        async with answering(self._client):
            now = await self._client.read_flow_run(run.id)
        if now.state is None or run.state is None or now.state.id != run.state.id or not lacks_results(now, standing):
            return
        expires_after = settings_of(run).output_expires_after
        writer = ResultFiles(shelves.database, shelves.store, run.id, expires_after)
        total = standing.checked.total if standing.checked else 0
        status: Ended = "cancelled" if now.state.is_cancelled() else "failed"
        results = await writer.write(status, total, str(standing.attempt))
        await note_stopped(shelves.database, run.id, standing.attempt, results)
