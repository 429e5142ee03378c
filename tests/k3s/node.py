"""Inside the namespaces: bring the cluster up, install the chart, try everything, print the table. See ``__main__``."""

import json
import sys
import time
from pathlib import Path

from tests.charts.tools import helm
from tests.k3s import images
from tests.k3s.cluster import Cluster
from tests.k3s.collector import Collector
from tests.k3s.machine import ClusterError
from tests.k3s.release import Release
from tests.k3s.scenarios import Scenarios
from tests.k3s.table import Row, Table


def main(folder: Path) -> int:
    """The exit status."""
    plan = json.loads((folder / "plan.json").read_text())
    began = time.monotonic()
    cluster = Cluster(folder, {name: Path(path) for name, path in plan["programs"].items()}, plan["cgroup"])
    table = Table(f"{plan['version']}, helm {plan['helm']}")
    try:
        cluster.start()
        cluster.serve_names(Path(plan["coredns"]))
        table.add(Row("cluster up", f"{time.monotonic() - began:.0f} s"))
        began = time.monotonic()
        cluster.load(Path(plan["image"]), f"docker.io/library/timestep:{images.version()}")
        size = Path(plan["image"]).stat().st_size / 1e6
        table.add(Row("image imported", f"{size:.0f} MB in {time.monotonic() - began:.0f} s"))
        release, collector = Release(cluster, helm(plan["helm"])), Collector(folder / "calls.jsonl")
        Scenarios(release, table, collector).run(plan["only"])
    except ClusterError as error:
        table.add(Row("the cluster", "", str(error).replace("|", "/")))
    print(f"\n{table}", flush=True)
    if plan["stay"]:
        enter = f"nsenter --all --target $(pgrep -nf 'k3s.node {folder}')"
        print(f"\nUp until Ctrl-C. Into it: {enter}; KUBECONFIG={cluster.kubeconfig}", flush=True)
        time.sleep(10**9)
    return int(table.failed)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
