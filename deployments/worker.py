"""The worker process, `python -m deployments.worker`: registers what there is to run, then runs it.

Registering happens here rather than in `up` because both need the flows imported, which takes seconds. With
``--join`` it registers nothing and takes its part of a service whose pools others register and serve too.
"""

import argparse
import asyncio
import importlib
import socket
import sys
from collections.abc import Sequence
from typing import Any

from deployments.pools import (
    any_run,
    is_training,
    say_nothing,
    say_ready,
    until_healthy,
    until_registered,
    until_signal,
)
from deployments.register import register
from deployments.supervisor import EXIT_CONFIG
from deployments.warm import WarmWorker
from deployments.zygote import Zygote, fork_zygote
from timestep.agents.registry import AgentRegistry, load_registry
from timestep.errors import TimestepError
from timestep.settings import Settings, load_settings

# What the worker and a flow run both need: our flows with everything they import.
SHARED_MODULES = ("flows.step", "flows.batch")


async def work(settings: Settings, agents: AgentRegistry, zygote: Zygote | None) -> None:
    """Register everything, then run flow runs until cancelled; without a zygote each in a new interpreter."""
    await until_healthy(settings)
    await register(settings, agents)
    await _poll(settings, zygote, name="local", create_pool_if_not_found=True)


async def join(settings: Settings, zygote: Zygote | None) -> None:
    """Run flow runs until cancelled, as one of several workers; register nothing."""
    await until_registered(settings, settings.work_pool)
    await _poll(settings, zygote, name=socket.gethostname(), create_pool_if_not_found=False)


async def _poll(settings: Settings, zygote: Zygote | None, **options: Any) -> None:
    worker = WarmWorker(
        settings.work_pool,
        **options,
        limit=settings.worker_limit,
        takes=any_run if settings.training_pool is None else lambda run: not is_training(run),
        zygote=zygote,
    )
    await worker.start(printer=lambda *_: say_ready(settings))


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until told to stop. An error in what the user gave us ends with EX_CONFIG: a restart can't help."""
    parser = argparse.ArgumentParser(prog="worker", description="Run flow runs in warm processes.")
    parser.add_argument("--join", action="store_true", help="register nothing: wait until the work pool is there")
    joins = parser.parse_args(arguments).join
    settings = load_settings()
    say_nothing(settings)
    for module in SHARED_MODULES:
        importlib.import_module(module)
    zygote = fork_zygote()
    if zygote is None:
        print("No warm start of flow runs here: each gets a new interpreter.", flush=True)
    try:
        # After the fork: agents files are read anew by each flow run.
        task = join(settings, zygote) if joins else work(settings, load_registry(settings), zygote)
        asyncio.run(until_signal(task))
    except TimestepError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_CONFIG if error.status < 500 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
