"""From the request for a flow run to the start of its code, through server, worker and process."""

import asyncio

from benchmarks.figure import Bench, Figure, spread
from timestep import runs

RUNS = 10


async def measure(bench: Bench) -> list[Figure]:
    """Seconds from creation to Running, and to Completed, of a step on a scripted model."""
    started, ended = [], []
    async with runs.connect(bench.settings.prefect_api) as client:
        for _ in range(RUNS):
            run = await runs.start(client, "step/step", {"input": "go", "agent": "quick"})
            (run,) = await runs.wait(client, {run.id})
            assert run.created and run.start_time and run.end_time
            started.append((run.start_time - run.created).total_seconds())
            ended.append((run.end_time - run.created).total_seconds())
            await asyncio.sleep(1)
    return [
        Figure("trigger to start of a flow run", spread(started, "s"), "stock process worker: 9.6 s, measured apart"),
        Figure("trigger to end of a whole step", spread(ended, "s")),
    ]
