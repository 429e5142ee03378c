"""The folders of training runs under the cache: each one process's at a time, and not there for ever."""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import fasteners

from training.lock import locked

LOCK = "lock"
ABANDONED_SECONDS = 7 * 24 * 3600


def lock_folder(folder: Path, on_wait: Callable[[], object]) -> AbstractAsyncContextManager[None]:
    """Hold a run's folder while the run goes on."""
    return locked(folder / LOCK, on_wait)


def remove_abandoned(folder: Path) -> None:
    """Remove the folders beside ``folder`` that nothing was added to for 7 days: killed runs leave large F32 files.

    Age alone does not tell, since a run may wait long for the cores: whoever goes on holds the lock. One
    that is resumed later still finds in storage what it needs.
    """
    oldest = time.time() - ABANDONED_SECONDS
    for other in folder.parent.iterdir():
        with suppress(OSError):  # another process may be removing it as well
            lock = fasteners.InterProcessLock(other / LOCK)
            if other != folder and other.stat().st_mtime < oldest and lock.acquire(blocking=False):
                shutil.rmtree(other, ignore_errors=True)
                lock.release()
