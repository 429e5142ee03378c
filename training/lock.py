"""Locks between processes: a file each, held while a block runs, and free again however its process ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import fasteners


@asynccontextmanager
async def locked(path: Path, on_wait: Callable[[], object]) -> AsyncIterator[None]:
    """Hold the lock that the file ``path`` stands for; ``on_wait`` is called once if another process has it.

    Two tasks of one process do not keep each other out.
    """
    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    lock = fasteners.InterProcessLock(path)
    if not lock.acquire(blocking=False):
        on_wait()
        while not lock.acquire(blocking=False):
            await asyncio.sleep(0.5)
    try:
        yield
    finally:
        lock.release()
