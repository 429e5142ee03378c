"""A process that takes a step's lease, begins a unit, and finishes it when told to: `python lease_process.py URL`.

Says what it did, a line each; a line on its standard input is what lets it go on. With a second argument `ends` it
ends the process before it, should that hang; with `hangs` it hangs itself when the unit has begun, all threads of it.
"""

import asyncio
import ctypes
import sys
from pathlib import Path

from storage.store import ObjectStore
from timestep.agents.record.lease import Lease
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
    await asyncio.to_thread(sys.stdin.readline)
    await ledger.finish(begin.position, lease.attempt)
    print("finished", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    sys.exit(3)


asyncio.run(main(*sys.argv[1:]))
