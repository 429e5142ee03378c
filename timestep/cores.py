"""How many cores this process may use: its CPU affinity, and the quota of its control group, as a container's limit is.

Formats: the kernel's Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and scheduler/sched-bwc.rst (``cpu.cfs_*``).
"""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available(cgroups: Path = CGROUPS) -> int:
    """At least 1. A quota of two and a half cores is two: who computes on more than there are waits for the slowest."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _quota(cgroups: Path) -> float | None:
    """In cores; None where there is none."""
    try:
        if (file := cgroups / "cpu.max").exists():
            limit, period = file.read_text().split()
        else:
            limit, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        quota = float(limit) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no control group, or "max"
        return None
    return quota if quota > 0 else None
