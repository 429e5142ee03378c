"""A process that takes a step's lease, begins a unit, and finishes it when told to: `python lease_process.py URL`.

Says what it did, a line each; a line on its standard input is what lets it go on.
"""

import asyncio
import sys
from pathlib import Path

from storage.store import ObjectStore
from timestep.agents.lease import Lease
from timestep.agents.ledger import Begin, DatabaseLedger
from timestep.database.engine import Database


async def main(url: str) -> None:
    lease = await Lease.acquire(Database(url), "s")
    ledger = await DatabaseLedger.open(lease._database, lease, ObjectStore.open(f"local://{Path.cwd()}/storage"))
    print(f"attempt {lease.attempt}", flush=True)
    begin = Begin("a/0", "tool-call", "tool", "f")
    recorded = await ledger.begin(begin)
    print("begun" if recorded is None else f"recorded {recorded.result}", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await ledger.finish(begin.position, lease.attempt)
    print("finished", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    sys.exit(3)


asyncio.run(main(sys.argv[1]))
