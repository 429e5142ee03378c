"""The worker process, `python -m deployments.worker`: registers what there is to run, then runs it.

Registering happens here rather than in `up` because both need the flows imported, which takes seconds.
"""

import asyncio
import importlib
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.workers.process import ProcessWorker

from deployments.register import declared_deployments, register_deployment, register_work_pool
from deployments.supervisor import EXIT_CONFIG
from deployments.warm import WarmWorker
from deployments.zygote import Zygote, fork_zygote
from storage.block import save_default
from timestep.agents.registry import AgentRegistry, load_registry
from timestep.database.engine import Database
from timestep.errors import TimestepError
from timestep.models.registry import ModelRegistry
from timestep.settings import Settings, load_settings

# What the worker and a flow run both need: our flows with everything they import.
SHARED_MODULES = ("flows.step", "flows.batch")


def ready_file(settings: Settings) -> Path:
    """Holds the process id of the worker that is ready."""
    return settings.run_dir / "worker.ready"


async def work(settings: Settings, agents: AgentRegistry, zygote: Zygote | None) -> None:
    """Register everything, then run flow runs until cancelled; without a zygote each in a new interpreter."""
    await _wait_until_healthy(f"{settings.prefect_api}/health")
    await asyncio.gather(save_default(settings), _declare_models(settings, agents), _register(settings))

    def started(*_: object) -> None:
        ready_file(settings).write_text(str(os.getpid()))

    kind = ProcessWorker if zygote is None else partial(WarmWorker, zygote=zygote)
    worker = kind(settings.work_pool, name="local", limit=settings.worker_limit)
    await worker.start(printer=started)


async def _register(settings: Settings) -> None:
    async with get_client() as client:
        await register_work_pool(client, settings.work_pool)
        work = (register_deployment(client, declared, settings.work_pool) for declared in declared_deployments())
        await asyncio.gather(*work)


async def _declare_models(settings: Settings, agents: AgentRegistry) -> None:
    """Each agent with a local model gets a model of its own name, on its base."""
    database = Database(str(settings.database_url))
    try:
        registry = ModelRegistry(database)
        for name in agents.names():
            if (base := agents.base(name)) is not None:
                await registry.declare(name, base)
    finally:
        await database.close()


async def _wait_until_healthy(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        while True:
            with suppress(httpx.HTTPError):
                if (await client.get(url)).is_success:
                    return
            await asyncio.sleep(0.1)


async def _until_signal(settings: Settings, agents: AgentRegistry, zygote: Zygote | None) -> None:
    task = asyncio.ensure_future(work(settings, agents, zygote))
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: task.cancel())
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def main() -> int:
    """Work until told to stop. An error in what the user gave us ends with EX_CONFIG: a restart can't help."""
    settings = load_settings()
    ready_file(settings).unlink(missing_ok=True)
    for module in SHARED_MODULES:
        importlib.import_module(module)
    zygote = fork_zygote()
    if zygote is None:
        print("No warm start of flow runs here: each gets a new interpreter.", flush=True)
    try:
        agents = load_registry(settings)  # after the fork: agents files are read anew by each flow run
        asyncio.run(_until_signal(settings, agents, zygote))
    except TimestepError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_CONFIG if error.status < 500 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
