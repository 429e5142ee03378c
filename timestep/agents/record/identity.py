"""Which process this is, written so that others on the same machine can see whether it still exists."""

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil


def own() -> str:
    """``host/pid/start/scope`` of this process; the start keeps a reused process id apart."""
    return f"{socket.gethostname()}/{os.getpid()}/{_start(os.getpid())}/{_scope()}"


def exists(holder: str | None) -> bool | None:
    """Whether the process of :func:`own` exists, a zombie being none; None where this machine can't tell."""
    if holder is None:
        return None
    pid, start, scope = holder.split("/")[-3:]
    if not scope or scope != _scope():
        return None
    return _start(int(pid)) == start


def send(holder: str, number: int) -> None:
    """Send a signal to the process of :func:`own`, if it exists on this machine, and to those it started.

    To its group only where it leads one of its own, as flow runs do: never to ours.
    """
    if not exists(holder):
        return
    pid = int(holder.split("/")[-3])
    with suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid != os.getpgid(0):
            os.killpg(pid, number)
        elif pid != os.getpid():
            os.kill(pid, number)


def _start(pid: int) -> str | None:
    """When the process started, in ticks since the boot; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.Error:
            return None
    except ProcessLookupError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@cache
def _scope() -> str:
    """Within which process ids mean the same: this boot of this kernel, this namespace. Empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    except OSError:
        return ""
