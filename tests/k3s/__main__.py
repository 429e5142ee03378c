"""``python -m tests.k3s``: a cluster of its own, the chart in it, everything killed once; prints one table.

Exit status 1 where a row failed. Where the host can't run containers it says why, and that is no failure.
"""

import json
import signal
import sys

from tests.charts.tools import ToolMissing, helm, kubectl
from tests.k3s import gobuild
from tests.k3s.host import Unable, prepare
from tests.k3s.private import private


def main() -> int:
    """The exit status."""
    # Ended politely is ended by Ctrl-C: everything is cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        prepare()
        helm(3), kubectl()
        kubernetes = gobuild.kubernetes()
        coredns = gobuild.coredns()
    except (Unable, ToolMissing) as error:
        print(f"skipped: {error}")
        return 0
    for note in kubernetes.notes:
        print(note, flush=True)
    with private() as place:
        plan = {
            "version": kubernetes.version,
            "programs": {name: str(path) for name, path in kubernetes.programs.items()},
            "coredns": str(coredns),
            "cgroup": place.cgroup.name,
        }
        (place.folder / "plan.json").write_text(json.dumps(plan))
        return place.run([sys.executable, "-m", "tests.k3s.node", str(place.folder)])


if __name__ == "__main__":
    sys.exit(main())
