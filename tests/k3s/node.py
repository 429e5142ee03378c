"""Inside the namespaces: bring the node up, run what is to be run on it, end it. See ``__main__``."""

import json
import sys
import time
from pathlib import Path

from tests.k3s.cluster import Cluster, Failed


def main(folder: Path) -> int:
    """The exit status."""
    plan = json.loads((folder / "plan.json").read_text())
    began = time.monotonic()
    cluster = Cluster(folder, {name: Path(path) for name, path in plan["programs"].items()}, plan["cgroup"])
    try:
        cluster.start()
        cluster.serve_names(Path(plan["coredns"]))
    except Failed as error:
        print(f"The cluster doesn't come up: {error}")
        return 1
    print(f"{plan['version']} is up after {time.monotonic() - began:.0f} s", flush=True)
    print(cluster.kubectl("get", "pods", "-A", "-o", "wide"))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
