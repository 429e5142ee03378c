"""Deployments: how many pods they have, how these are replaced, and what says that they may be asked."""

from typing import Any

import pytest

from tests.charts.conftest import ALL_CASES
from tests.charts.rendering import render

ONE_MORE_FIRST = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
# By component. The model server's says that its weights are loaded; its /health, that it runs.
READY = {"api": "/livez", "model-server": "/ready", "prefect-server": "/api/health"}
ABSENT = {"no-model-server": {"model-server"}, "own-prefect": {"prefect-server"}}


@pytest.mark.parametrize(
    ("case", "component", "pods", "strategy"),
    [
        ("defaults", "api", 2, ONE_MORE_FIRST),
        ("defaults", "model-server", 1, ONE_MORE_FIRST),
        # What its background services tell each other is in the memory of the one process.
        ("defaults", "prefect-server", 1, {"type": "Recreate"}),
        ("split", "prefect-server", 3, ONE_MORE_FIRST),
    ],
)
def test_rollouts_leave_no_gap_and_never_have_two_whole_prefect_servers(
    case: str, component: str, pods: int, strategy: dict[str, Any]
) -> None:
    spec = render(case).one("Deployment", f"timestep-{component}")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (pods, strategy)


@pytest.mark.parametrize("case", ALL_CASES)
def test_whoever_listens_says_when_it_may_be_asked(case: str) -> None:
    listening = {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: container.get("readinessProbe", {}).get("httpGet")
        for one in render(case).all("Deployment")
        for container in one["spec"]["template"]["spec"]["containers"]
        if "ports" in container
    }
    expected = {name: path for name, path in READY.items() if name not in ABSENT.get(case, set())}
    assert listening == {name: {"path": path, "port": "http"} for name, path in expected.items()}
