"""A process that takes a step's lease, begins a unit, and finishes it when told to: `python lease_process.py URL`.

Says what it did, a line each; a line on its standard input is what lets it go on. With a second argument `ends` it
ends the process before it, should that hang; with `hangs` it hangs itself when the unit has begun, all threads of it;
with `blocks`, past the unit's timeout, the event loop alone.
"""

import asyncio
import ctypes
import sys
import time
from pathlib import Path

from storage.store import ObjectStore
from timestep.agents.record import overdue
from timestep.agents.record.lease import Lease, unblocked
from timestep.agents.record.ledger import Begin, DatabaseLedger
from timestep.database.engine import Database


async def main(url: str, how: str = "") -> None:
    lease = await Lease.acquire(Database(url), "s", end_hung=how == "ends")
    ledger = await DatabaseLedger.open(lease._database, lease, ObjectStore.open(f"local://{Path.cwd()}/storage"))
    print(f"attempt {lease.attempt}", flush=True)
    begin = Begin("a/0", "tool-call", "tool", "f")
    recorded = await ledger.begin(begin)
    print("begun" if recorded is None else f"recorded {recorded.result}", flush=True)
    if how == "hangs":
        ctypes.PyDLL(None).sleep(60)  # which keeps Python's lock
    if how == "blocks":
        overdue.PATIENCE = 0.5
        with unblocked("s", 0.5, "a call of tool 'tool'"):
            time.sleep(60)
    await asyncio.to_thread(sys.stdin.readline)
    await ledger.finish(begin.position, lease.attempt)
    print("finished", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    sys.exit(3)


asyncio.run(main(*sys.argv[1:]))
