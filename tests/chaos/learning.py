"""Training under fault injection: killed between epochs, once in each way; no epoch may be trained twice."""

import asyncio
import json
import os
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import asyncpg
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun

from tests.chaos.stack import Stack
from tests.conftest import conversation
from timestep import runs

SECONDS = 300.0


@dataclass(frozen=True)
class Learnt:
    """What came of the training step; ``attempts`` are those that trained its finished epochs, one for each."""

    state: str
    wanted: int
    attempts: list[int]
    repeated: int

    @property
    def bad(self) -> list[str]:
        """What must not be, a line each."""
        found = [] if self.state.startswith("Completed") else [f"training ended as {self.state}"]
        if len(self.attempts) != self.wanted:
            found.append(f"{len(self.attempts)} of {self.wanted} epochs trained")
        return found + ([f"{self.repeated} completed epochs repeated"] if self.repeated else [])

    def rows(self) -> list[tuple[str, str]]:
        """Of the table."""
        processes = len(set(self.attempts))
        return [
            ("a training step, killed after each epoch", f"{len(self.attempts)} epochs by {processes} processes"),
            ("completed epochs repeated", str(self.repeated)),
        ]


class Learning:
    """One step in training mode with an epoch for each kind of kill, and one more."""

    def __init__(self, stack: Stack, kills: tuple[str, ...] = ("flow run", "worker and flow runs", "stack")) -> None:
        self.stack, self.kills = stack, kills
        self.wanted = len(kills) + 1
        self.step = ""

    async def run(self) -> Learnt:
        """Train, killing after each epoch, until the step has ended."""
        dataset = self.stack.settings.home / "dataset.jsonl"
        dataset.write_text("".join(f"{json.dumps(conversation(n))}\n" for n in range(24)))
        training = {"dataset": str(dataset), "epochs": self.wanted, "context_length": 256, "promote": "always"}
        parameters = {"agent": "pupil", "mode": "training", "training": training}
        async with runs.connect(self.stack.settings.prefect_api) as client:
            self.step = str((await runs.start(client, "step/step", parameters)).id)
            for number, target in enumerate(self.kills, 1):
                async with asyncio.timeout(SECONDS):
                    while len(await self.epochs()) < number or self.step not in await self.stack.holders():
                        if (state := await self.ended(client)) is not None:
                            return await self.learnt(client, state)
                        await asyncio.sleep(0.05)
                await self.kill(target)
                print(f"      training: {target} killed after epoch {number}", flush=True)
                await asyncio.sleep(1)
                await self.stack.up()
            async with asyncio.timeout(SECONDS):
                while (state := await self.ended(client)) is None:
                    await asyncio.sleep(0.3)
            return await self.learnt(client, state)

    async def kill(self, target: str) -> None:
        """kill -9 of one kind, the step's process among it."""
        if target != "flow run":
            self.stack.kill(target.removesuffix(" and flow runs"))
        if target != "stack":
            with suppress(ProcessLookupError, KeyError):
                os.kill((await self.stack.holders())[self.step], signal.SIGKILL)

    async def ended(self, client: PrefectClient) -> State[object] | None:
        """The step's final state, once it has one."""
        state = (await client.read_flow_run(UUID(self.step))).state
        return state if state is not None and state.is_final() and not state.is_crashed() else None

    async def learnt(self, client: PrefectClient, state: State[object]) -> Learnt:
        """What the record and Prefect's tasks say: an epoch is repeated that began after its end, or ended twice."""
        epochs, tasks = await self.epochs(), await self.tasks(client)
        started = [(task.name, task.start_time) for task in tasks if task.start_time is not None]
        again = Counter(name for name, at in started if name in epochs and at > epochs[name]["finished_at"])
        ends = Counter(task.name for task in tasks if task.state is not None and task.state.is_completed())
        repeated = sum(max(again[name], ends[name] - 1) for name in epochs)
        attempts = [epoch["attempt"] for epoch in epochs.values()]
        return Learnt(f"{state.name}: {state.message}", self.wanted, attempts, repeated)

    async def epochs(self) -> dict[str, asyncpg.Record]:
        """Finished epochs by name: when that was, and the attempt that trained them."""
        query = "select name, attempt, finished_at from units where step_id = $1 and kind = 'epoch'"
        rows = await self.stack.fetch(f"{query} and finished_at is not null", self.step)
        return {row["name"]: row for row in rows}

    async def tasks(self, client: PrefectClient) -> list[TaskRun]:
        """Prefect's tasks: one for each time that an epoch began."""
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(self.step)]))
        return [task for task in await client.read_task_runs(flow_run_filter=chosen) if task.name.startswith("epoch")]
