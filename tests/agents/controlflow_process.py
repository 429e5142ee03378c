"""Attempts at ControlFlow steps in a new interpreter, each in a child of it: `… URL FOLDER/NAME:INPUT …`.

The folder holds the agents file, and is the step's id. Says a line of JSON for each step: its output, or its exit code.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from agents import ModelSettings

import timestep.agents.controlflow  # before the fork: it takes seconds
from storage.store import ObjectStore
from timestep.agents.durable.run import DurableStep
from timestep.agents.record.lease import Lease
from timestep.agents.record.ledger import DatabaseLedger
from timestep.agents.registry import load_agents
from timestep.agents.tools import StepContext
from timestep.database.engine import Database


async def attempt(url: str, folder: Path, name: str, input: str) -> None:
    what = {agent.name: agent for agent in load_agents(folder / "agents.py")}[name].what
    store, database = ObjectStore.open(f"local://{folder}/storage"), Database(url)
    ledger = await DatabaseLedger.open(database, await Lease.acquire(database, str(folder)), store)
    step = DurableStep(str(folder), resolve=lambda agent: ("planned", agent.model), ledger=ledger)
    context = StepContext(step.step_id, name, store, workspace="w")
    try:
        ran = await timestep.agents.controlflow.run_controlflow(
            step, what, input, context=context, max_turns=20, settings=ModelSettings()
        )
        said = {"output": ran.final_output}
    except Exception as error:
        said = {"error": str(error)}
    os.write(1, f"{json.dumps([str(folder), said])}\n".encode())


def main(url: str, attempts: list[str]) -> None:
    children = {}
    for given in attempts:
        path, _, input = given.partition(":")
        if (child := os.fork()) == 0:
            asyncio.run(attempt(url, Path(path).parent, Path(path).name, input))
            os._exit(0)
        children[child] = str(Path(path).parent)
    for child, folder in children.items():
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            os.write(1, f"{json.dumps([folder, {'exit': status}])}\n".encode())


main(sys.argv[1], sys.argv[2:])
