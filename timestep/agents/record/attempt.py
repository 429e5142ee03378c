"""One process's go at a step: its lease, its ledger and its event log. All that it writes is fenced."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from storage.store import ObjectStore
from timestep.agents.record import lease as leases
from timestep.agents.record.events import EventLog
from timestep.agents.record.lease import Lease
from timestep.agents.record.ledger import DatabaseLedger
from timestep.database.engine import Database
from timestep.errors import ServiceUnavailableError


@dataclass(frozen=True)
class Attempt:
    """What this process holds of the step while it works on it."""

    database: Database
    lease: Lease
    ledger: DatabaseLedger
    events: EventLog

    @classmethod
    @asynccontextmanager
    async def begin(cls, database: Database, store: ObjectStore, step_id: str) -> "AsyncIterator[Attempt]":
        """Take the lease and load the record; where another process works on the step, this one ends.

        The lease outlives the context: it is held until the process ends, or releases it.

        Raises:
            ServiceUnavailableError: the database stayed away.
        """
        lease = await Lease.acquire(database, step_id)
        ledger = await DatabaseLedger.open(database, lease, store)
        events = EventLog(database, lease)
        try:
            yield cls(database, lease, ledger, events)
        finally:
            await events.close()
            await ledger.close()
            await database.close()

    @property
    def started(self) -> datetime:
        """When the step's first process began."""
        return self.ledger.started

    async def confirm(self) -> None:
        """Return only if what comes next, such as the run's final state, is this process's to say.

        Superseded, the process ends without a word. With the database away for minutes nobody can tell: then it ends
        as crashed, and the service starts the step again when it can, rather than calling work lost that is not.
        """
        try:
            await self.ledger.check()
        except ServiceUnavailableError:
            leases.end_process(1)
