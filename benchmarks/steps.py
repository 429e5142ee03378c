"""A durable step against the same calls without Prefect, and against Prefect's SQLite default."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.figure import Bench, Figure, median, spread
from deployments.local import free_port

RUNS = 15
WARM_UP = 3


async def measure(bench: Bench) -> list[Figure]:
    """Seconds of one step with 3 model calls and 2 tool calls on a scripted model."""
    bare = await _child(bench, "bare", bench.environment)
    durable = await _child(bench, "flow", bench.environment)
    with _sqlite_server(bench.folder) as url:
        sqlite = await _child(bench, "flow", bench.environment | {"PREFECT_API_URL": url})
    what = "step: 3 model + 2 tool calls"
    return [
        Figure(
            f"{what}, durable on PostgreSQL",
            spread(durable, "s"),
            f"without Prefect {spread(bare, 's')}",
            f"{median(durable) / median(bare):.1f}x",
        ),
        Figure(
            f"{what}, durable on PostgreSQL",
            spread(durable, "s"),
            f"on SQLite {spread(sqlite, 's')}",
            f"{median(durable) / median(sqlite):.2f}x",
        ),
    ]


async def _child(bench: Bench, kind: str, environment: dict[str, str]) -> list[float]:
    root = str(Path(__file__).resolve().parents[1])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.steps", kind),
        env=environment | {"PYTHONPATH": root, "PREFECT_LOGGING_LEVEL": "ERROR"},
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the {kind} measurement failed")
    seconds: list[float] = json.loads(out.splitlines()[-1])
    return seconds


@contextmanager
def _sqlite_server(folder: Path) -> Iterator[str]:
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(folder / "sqlite"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(300):
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            raise RuntimeError("Prefect on SQLite did not start")
        yield url
    finally:
        server.terminate()
        server.wait(10)


async def _bare() -> None:
    from flows.support import Services
    from flows.waiting import People
    from timestep.agents.record.attempt import Attempt
    from timestep.agents.think import Thinking, think
    from timestep.agents.types import InferenceSettings
    from timestep.settings import load_settings

    services = Services.open(load_settings())
    request = Thinking(uuid.uuid4().hex, "go", "quick", None, None, 10, InferenceSettings())
    async with Attempt.begin(services.database, services.store, request.step_id) as attempt:
        people = People(services.database, attempt.lease)
        await think(request, services.settings, services.store, services.registry, attempt, people)


async def _flow() -> None:
    from flows.step import step

    await step(input="go", agent="quick")


async def _main(kind: str) -> None:
    if kind == "flow":
        from storage.block import save_default
        from timestep.settings import load_settings

        await save_default(load_settings())
    run = {"bare": _bare, "flow": _flow}[kind]
    seconds = []
    for _ in range(WARM_UP + RUNS):
        started = time.perf_counter()
        await run()
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds[WARM_UP:]))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
