"""The mark that every process of one service carries, and ending all that carry it.

The mark is an environment variable, so that it reaches processes we don't start ourselves (flow runs,
the tools they call). It is ``<digest of the home>:<one start of the service>``: a watchdog ends only the
start it belongs to, a new start may end whatever an earlier one left behind on its home.
"""

import hashlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

VARIABLE = "TIMESTEP_INSTANCE"


def home_mark(home: Path) -> str:
    """First part of the mark, common to every start on this home."""
    return hashlib.sha256(str(home).encode()).hexdigest()[:16] + ":"


def new_mark(home: Path) -> str:
    """The mark of a new start on this home."""
    return home_mark(home) + uuid.uuid4().hex[:16]


def members(mark: str) -> Iterator[psutil.Process]:
    """Processes whose mark begins with ``mark``; never this one. Those of other users are skipped unless root."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(VARIABLE, "").startswith(mark):
                yield process


def end_all(mark: str, grace: float = 3.0, limit: float = 10.0) -> int:
    """End every process with this mark: asked first, killed after ``grace`` seconds. Returns how many there were.

    PostgreSQL is asked by SIGINT (its fast shutdown: SIGTERM would wait for its clients) and never killed before
    ``limit`` is near, so that it can write its checkpoint. Looks again until none is left: a process that is
    being ended may still start another.
    """
    seen: set[int] = set()
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < limit:
        found = [process for process in members(mark) if process.status() != psutil.STATUS_ZOMBIE]
        if not found:
            break
        for process in found:
            patience = limit - 2 if _is_postgres(process) else grace
            if process.pid not in seen:
                seen.add(process.pid)
                _signal(process, lambda p: p.send_signal(signal.SIGINT) if _is_postgres(p) else p.terminate())
            elif elapsed > patience:
                _signal(process, lambda p: p.kill())
        time.sleep(0.05)
    return len(seen)


def _signal(process: psutil.Process, send: Callable[[psutil.Process], None]) -> None:
    with suppress(psutil.Error):
        send(process)


def _is_postgres(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.name().startswith("postgres"))
    return False
