"""Flows that wait, for what happens to a flow run meanwhile."""

import asyncio
import os
import signal
import sys
import threading

from prefect import flow


@flow
async def nap(seconds: float = 60, child: bool = False) -> dict[str, int]:
    """Sleeps; with ``child`` beside a process of its own. Says which processes these were."""
    pids = {"pid": os.getpid(), "parent": os.getppid(), "threads_at_start": threading.active_count()}
    if child:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        pids["child"] = (await asyncio.create_subprocess_exec(*command)).pid
    await asyncio.sleep(seconds)
    return pids


@flow
async def vanish() -> None:
    """Dies as if the machine's memory had run out."""
    os.kill(os.getpid(), signal.SIGKILL)


@flow
async def leave() -> None:
    """Ends its process by an exit code of its own."""
    os._exit(3)
