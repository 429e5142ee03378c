"""Training under fault injection: killed between epochs, once in each way; no epoch may be trained twice."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from uuid import UUID

from prefect.client.schemas.objects import State

from tests.chaos.stack import Stack
from tests.conftest import conversation
from timestep import runs

SECONDS = 300.0


class Learning:
    """One step in training mode with an epoch for each kind of kill, and one more."""

    def __init__(self, stack: Stack, kills: tuple[str, ...] = ("flow run", "worker and flow runs", "stack")) -> None:
        self.stack, self.kills = stack, kills
        self.step = ""

    async def run(self) -> State[object] | None:
        """Train, killing after each epoch; its final state."""
        dataset = self.stack.settings.home / "dataset.jsonl"
        dataset.write_text("".join(f"{json.dumps(conversation(n))}\n" for n in range(24)))
        training = {"dataset": str(dataset), "epochs": len(self.kills) + 1, "context_length": 256, "promote": "always"}
        async with runs.connect(self.stack.settings.prefect_api) as client:
            parameters = {"agent": "pupil", "mode": "training", "training": training}
            self.step = str((await runs.start(client, "step/step", parameters)).id)
        for number, target in enumerate(self.kills, 1):
            async with asyncio.timeout(SECONDS):
                while len(await self.epochs()) < number or self.step not in await self.stack.holders():
                    await asyncio.sleep(0.05)
            if target != "flow run":
                self.stack.kill(target.removesuffix(" and flow runs"))
            if target != "stack":
                with suppress(ProcessLookupError, KeyError):
                    os.kill((await self.stack.holders())[self.step], signal.SIGKILL)
            print(f"      training: {target} killed after epoch {number}", flush=True)
            await asyncio.sleep(1)
            await self.stack.up()
        async with runs.connect(self.stack.settings.prefect_api) as client, asyncio.timeout(SECONDS):
            while True:
                state = (await client.read_flow_run(UUID(self.step))).state
                if state is not None and state.is_final() and not state.is_crashed():
                    return state
                await asyncio.sleep(0.3)

    async def epochs(self) -> dict[str, int]:
        """Finished epochs, each with the attempt that trained it."""
        query = "select position, attempt, finished_at from units where step_id = $1 and kind = 'epoch'"
        rows = await self.stack.fetch(query, self.step)
        return {row["position"]: row["attempt"] for row in rows if row["finished_at"] is not None}

    async def trained(self) -> int:
        """Epochs that were begun, however often: a Prefect task each."""
        async with runs.connect(self.stack.settings.prefect_api) as client:
            from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

            chosen = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(self.step)]))
            tasks = await client.read_task_runs(flow_run_filter=chosen)
        return sum(task.name.startswith("epoch") and bool(task.state and task.state.is_completed()) for task in tasks)
