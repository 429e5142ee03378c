"""What the HTTP server shares between its requests: one Prefect client, one database, one feed of events.

They are made once Prefect's server answers: importing its client takes a second of processor time, which the service's
start has better use for. From then on it also keeps house: steps that died are started again, those for which all
is decided go on, traces of those cancelled while they waited are completed, results of stopped batches are written,
old events and expired files go.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from timestep.errors import ServiceUnavailableError, TimestepError
from timestep.server.starting import Starts
from timestep.settings import Settings

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

    from storage.store import ObjectStore
    from timestep.agents.record.event_feed import EventFeed
    from timestep.database.engine import Database

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
TRACE_SECONDS = 10.0
PRUNE_SECONDS = 600.0
FILES_SECONDS = 60.0
RESULTS_SECONDS = 1.0
CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class Records:
    """Where steps are looked up, and started."""

    client: PrefectClient
    database: Database
    feed: EventFeed
    storage_url: str
    starts: Starts = field(default_factory=Starts)


@dataclass(frozen=True)
class Shelves:
    """What needs no Prefect: our database, and storage."""

    database: Database
    store: ObjectStore


class Housekeeper:
    """Makes the records, and keeps house while the server runs. Everything is safe with several servers at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: asyncio.Future[Records] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())
        self._database: Database | None = None
        self._shelves: Shelves | None = None
        self._opening = asyncio.Lock()
        self.leaving = asyncio.Event()  # the server is about to end: whoever streams says goodbye

    async def records(self) -> Records:
        """The records, once they are there.

        Raises:
            ServiceUnavailableError: no database is known, or Prefect's server has not answered yet.
        """
        if self._settings.database_url is None:
            raise ServiceUnavailableError("database", "TIMESTEP_DATABASE_URL")
        if not self._made.done():
            if not await _answers(self._settings.prefect_api):
                raise ServiceUnavailableError("Prefect server", self._settings.prefect_api)
            await asyncio.wait([self._made], timeout=15)
        if not self._made.done():
            raise ServiceUnavailableError("Prefect server", self._settings.prefect_api)
        return self._made.result()

    async def database(self) -> Database:
        """Our database, at once. ServiceUnavailableError: none is known."""
        if self._settings.database_url is None:
            raise ServiceUnavailableError("database", "TIMESTEP_DATABASE_URL")
        if self._database is None:
            from timestep.database.engine import Database

            self._database = Database(self._settings.database_url)
        return self._database

    async def shelves(self) -> Shelves:
        """Our database and storage, at once. ServiceUnavailableError: no database is known."""
        database = await self.database()
        async with self._opening:
            if self._shelves is None:
                self._shelves = Shelves(database, await asyncio.to_thread(self._open_store))
            return self._shelves

    def _open_store(self) -> ObjectStore:
        from storage.store import ObjectStore

        return ObjectStore.open(self._settings.storage, self._settings.home / "spool")

    async def _sweep_files(self) -> None:
        from timestep.files import Files
        from timestep.files.uploads import Uploads
        from timestep.server.agent_protocol import artifact_rows

        shelves = await self.shelves()
        await Files(shelves.database, shelves.store).sweep()
        await Uploads(shelves.database, shelves.store).sweep()
        await artifact_rows.sweep(shelves)

    def leave(self) -> None:
        """Have every stream end soon, so that nobody need wait for it; from any thread, and from a signal's handler."""
        self._loop.call_soon_threadsafe(self.leaving.set)

    async def close(self) -> None:
        """Stop keeping house, close the connections; bounded in time."""
        self.leaving.set()
        self._task.cancel()
        await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        if self._database is not None:
            await self._database.close()

    async def _run(self) -> None:
        try:
            if self._settings.database_url is not None:
                await self._keep_house(self._settings.database_url)
        except Exception:
            logger.exception("The server has nobody to keep house")

    async def _keep_house(self, database_url: str) -> None:
        while not await _answers(self._settings.prefect_api):
            await asyncio.sleep(0.5)
        modules = ("timestep.steps", "timestep.agents.record.event_feed", "timestep.repair", "timestep.files.uploads")
        for module in modules:
            await asyncio.to_thread(importlib.import_module, module)
        from prefect.client.orchestration import PrefectClient

        from timestep import steps
        from timestep.agents.record.event_feed import EventFeed, prune_events
        from timestep.database.engine import Database
        from timestep.repair import repair_loop
        from timestep.server.batch_results import StoppedBatches

        database = Database(database_url)
        feed = EventFeed(database)
        try:
            async with PrefectClient(self._settings.prefect_api, auth_string=self._settings.prefect_login) as client:
                self._made.set_result(Records(client, database, feed, self._settings.storage))
                traces = steps.EndedTraces(client, database, self._settings.storage)
                stopped = StoppedBatches(client, self.shelves)
                await asyncio.gather(
                    repair_loop(self._settings, database, self.leaving),
                    _every(SWEEP_SECONDS, lambda: steps.sweep(client, database)),
                    _every(TRACE_SECONDS, traces.complete),
                    _every(RESULTS_SECONDS, stopped.write),
                    _every(PRUNE_SECONDS, lambda: prune_events(database)),
                    _every(FILES_SECONDS, self._sweep_files),
                )
        finally:
            await feed.close()
            await database.close()


async def _every(seconds: float, work: Callable[[], Awaitable[Any]]) -> None:
    """Do it again and again; what fails is said once and tried again."""
    well = True
    while True:
        try:
            await work()
            well = True
        except TimestepError as error:
            logger.log(logging.WARNING if well else logging.DEBUG, "%s", error)
            well = False
        except Exception:
            logger.exception("Keeping house failed")
        await asyncio.sleep(seconds)


async def _answers(api_url: str) -> bool:
    async with httpx.AsyncClient(timeout=5, trust_env=False, verify=False) as client:
        try:
            return (await client.get(f"{api_url}/health")).is_success
        except httpx.HTTPError:
            return False
