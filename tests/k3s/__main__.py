"""``python -m tests.k3s``: a cluster of its own, the chart in it, everything killed once; prints one table.

Exit status 1 where a row failed, or the image can't be built. Where the host can't run containers it says why, and that
is no failure.
"""

import argparse
import json
import os
import signal
import sys

from tests.charts.tools import ToolMissingError, helm, kubectl
from tests.k3s import gobuild, images
from tests.k3s.host import HostError, SetupError, prepare
from tests.k3s.private import private


def main(arguments: argparse.Namespace) -> int:
    """The exit status."""
    try:
        built = "TIMESTEP_K3S_IMAGE" not in os.environ
        building = {"buildah": "buildah", "debootstrap": "debootstrap"} if built else {}
        prepare({"redis-server": "redis-server", **building})
        helm(arguments.helm)
        kubectl()
        kubernetes = gobuild.kubernetes()
        coredns = gobuild.coredns()
        for note in kubernetes.notes:
            print(note, flush=True)
        with private() as place:
            plan = {
                "version": kubernetes.version,
                "programs": {name: str(path) for name, path in kubernetes.programs.items()},
                "coredns": str(coredns),
                "image": str(images.service(place.folder).absolute()),
                "helm": arguments.helm,
                "cgroup": place.cgroup.name,
                "stay": arguments.stay,
                "only": arguments.only,
            }
            (place.folder / "plan.json").write_text(json.dumps(plan))
            return place.run([sys.executable, "-m", "tests.k3s.node", str(place.folder)])
    except (HostError, ToolMissingError) as error:
        print(f"skipped: {error}")
        return 0
    except SetupError as error:
        print(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    # Ended politely is ended by Ctrl-C: everything is cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m tests.k3s", description="The chart on a real cluster.")
    parser.add_argument("--helm", type=int, choices=(3, 4), default=3, help="major version of helm")
    parser.add_argument("--stay", action="store_true", help="leave the cluster up until Ctrl-C, for a look into it")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="after the installation, these alone")
    sys.exit(main(parser.parse_args()))
