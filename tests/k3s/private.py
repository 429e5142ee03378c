"""Namespaces of the cluster's own, entered by a child process; nothing of them is left on the host when it ends."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.k3s.host import Cgroup, Sysctls

NAMESPACES = (
    *("--net", "--mount", "--pid", "--ipc"),
    *("--fork", "--kill-child", "--mount-proc", "--propagation=private"),
)


def enter(folder: Path, command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a command as the first of new namespaces; what it has to itself of the file system is in ``folder``."""
    entry = [sys.executable, "-m", "tests.k3s.inside", str(folder)]
    return subprocess.Popen(["unshare", *NAMESPACES, "--", *entry, *command])


@dataclass
class Private:
    """A folder and a group of processes for one cluster, and the way into its namespaces."""

    folder: Path
    cgroup: Cgroup

    def run(self, command: list[str]) -> int:
        """Run a command as the first of new namespaces; its exit status. With it ends all that it started."""
        process = enter(self.folder, command)
        try:
            return process.wait()
        finally:
            # Killed, it takes its child along: the first process of the namespace, with whom all others end.
            process.kill()
            process.wait()


@contextmanager
def private() -> Iterator[Private]:
    """One, removed at the end."""
    sysctls = Sysctls()
    # A short path: sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="k3s-"))
    cgroup = Cgroup(f"timestep-{folder.name}")
    cgroup.create()
    try:
        yield Private(folder, cgroup)
    finally:
        removed(cgroup)
        sysctls.restore()
        if not os.environ.get("K3S_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


def removed(cgroup: Cgroup) -> None:
    """Remove a group, a moment after its last process has gone."""
    for _ in range(50):
        with suppress(OSError):
            cgroup.remove()
            return
        time.sleep(0.2)
    print(f"left behind: cgroup {cgroup.name}", file=sys.stderr)
