"""One attempt at a ControlFlow step in a process of its own: `python controlflow_process.py URL FILE NAME INPUT`."""

import asyncio
import json
import sys
from pathlib import Path

from agents import ModelSettings

from storage.store import ObjectStore
from timestep.agents.durable import DurableStep
from timestep.agents.lease import Lease
from timestep.agents.ledger import DatabaseLedger
from timestep.agents.registry import load_agents
from timestep.agents.tools import StepContext
from timestep.database.engine import Database


async def main(url: str, file: Path, name: str, input: str) -> None:
    what = {agent.name: agent for agent in load_agents(file)}[name].what
    from timestep.agents.controlflow import run_controlflow

    store, database = ObjectStore.open(f"local://{file.parent}/storage"), Database(url)
    ledger = await DatabaseLedger.open(database, await Lease.acquire(database, "s"), store)
    step = DurableStep("s", resolve=lambda agent: ("planned", agent.model), ledger=ledger)
    context = StepContext("s", name, store, workspace="w")
    ran = await run_controlflow(step, what, input, context=context, max_turns=20, settings=ModelSettings())
    print(json.dumps({"output": ran.final_output, "calls": [call.position for call in step.calls]}))


asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
