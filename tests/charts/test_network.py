"""Network policies: what needs another part reaches it, and what doesn't can't."""

from itertools import pairwise

import pytest

from tests.charts.jobs import prepared_jobs
from tests.charts.rendering import NAMESPACE, Document, Pod, render
from tests.charts.test_wiring import matches

CASES = ("observed", "ingress", "job-namespace", "external-database")
STRANGER = Pod("a stranger", {"app": "stranger"}, {}, {"containers": []})


def role(pod: Pod) -> str:
    """What a pod does: the first argument of its container; a job of a pool is a flow run."""
    return "flow-run" if pod.owner.startswith("Job of") else str(pod.spec["containers"][0]["args"][0])


def pods(case: str) -> dict[str, Pod]:
    return {role(pod): pod for pod in [*render(case).pods, *prepared_jobs(case)]}


def namespace(case: str, pod: Pod) -> str:
    """Where a pod runs; strangers are elsewhere."""
    if pod is STRANGER:
        return "elsewhere"
    return "jobs" if case == "job-namespace" and role(pod) == "flow-run" else NAMESPACE


def applying(case: str, pod: Pod, direction: str) -> list[Document]:
    """Policies that hold for a pod in a direction."""
    return [
        policy
        for policy in render(case).all("NetworkPolicy")
        if policy["metadata"].get("namespace", NAMESPACE) == namespace(case, pod)
        and matches(policy["spec"]["podSelector"], pod.labels)
        and direction in policy["spec"]["policyTypes"]
    ]


def permits(case: str, source: Pod, target: Pod, port: int) -> bool:
    """Whether both ends' policies let a connection through."""

    def one_way(own: Pod, other: Pod, direction: str, peers: str) -> bool:
        policies = applying(case, own, direction)
        return not policies or any(
            ("ports" not in rule or any(_port(one, target) in (None, port) for one in rule["ports"]))
            and (not rule.get(peers) or any(_is_peer(case, peer, own, other) for peer in rule[peers]))
            for policy in policies
            for rule in policy["spec"].get(direction.lower(), [])
        )

    return one_way(source, target, "Egress", "to") and one_way(target, source, "Ingress", "from")


def _port(rule: dict[str, object], target: Pod) -> object:
    wanted = rule.get("port")
    if isinstance(wanted, str):
        (wanted,) = (
            one["containerPort"]
            for container in target.spec["containers"]
            for one in container.get("ports", [])
            if one["name"] == wanted
        )
    return wanted


def _is_peer(case: str, peer: Document, own: Pod, other: Pod) -> bool:
    if "ipBlock" in peer:
        return False  # of machines outside the cluster
    there = {"kubernetes.io/metadata.name": namespace(case, other)}
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], there):
            return False
    elif namespace(case, own) != namespace(case, other):
        return False
    return matches(peer.get("podSelector", {}), other.labels)


# Who is told an address needs what is there.
ADDRESSES = {
    "TIMESTEP_PREFECT_API_URL": ("prefect-server", 4200),
    "TIMESTEP_DATABASE_URL": ("database", 5432),
    "TIMESTEP_MODEL_SERVER_URL": ("model-server", 8001),
}


def needed(pod: Pod) -> set[tuple[str, int]]:
    """Parts and ports that a pod connects to."""
    names = {variable["name"] for variable in pod.environment}
    if role(pod) == "register":
        names.discard("TIMESTEP_MODEL_SERVER_URL")  # it writes down which models there are, and asks none
    return {target for name, target in ADDRESSES.items() if name in names and target[0] != role(pod)}


@pytest.mark.parametrize("case", CASES)
def test_the_parts_reach_what_they_need(case: str) -> None:
    there = pods(case)
    assert needed(there["api"]) == needed(there["flow-run"]) == set(ADDRESSES.values())
    for source, pod in there.items():
        for target, port in needed(pod):
            if target in there:
                assert permits(case, pod, there[target], port), f"{source} -> {target}"


@pytest.mark.parametrize("case", CASES)
def test_strangers_reach_no_part_but_what_is_public(case: str) -> None:
    for target, port in (("database", 5432), ("model-server", 8001), ("worker", 80), ("warm-worker", 80)):
        if target in pods(case):
            assert not permits(case, STRANGER, pods(case)[target], port), target


def test_who_may_reach_the_public_parts_is_said_by_the_values() -> None:
    there = pods("ingress")
    for target, port in (("api", 8000), ("prefect-server", 4200)):
        assert not permits("ingress", STRANGER, there[target], port)
        assert permits("observed", STRANGER, pods("observed")[target], port)


def test_parts_reach_only_the_parts_they_need() -> None:
    there = pods("ingress")
    for source, pod in there.items():
        for target, port in set(ADDRESSES.values()) - needed(pod):
            if target != source:
                assert not permits("ingress", pod, there[target], port), f"{source} -> {target}"


@pytest.mark.parametrize("case", ["external-database", "split"])
def test_both_ends_of_a_connection_agree(case: str) -> None:
    there = pods(case)
    for source, pod in there.items():
        for target, port in {*ADDRESSES.values(), ("api", 8000)}:
            if target in there and _names(case, pod, there[target], port):
                assert permits(case, pod, there[target], port), f"{source} may call {target}, which lets it not in"


def _names(case: str, source: Pod, target: Pod, port: int) -> bool:
    """Whether a policy of the source names the target as one that it calls."""
    rules = [rule for policy in applying(case, source, "Egress") for rule in policy["spec"]["egress"]]
    return any(
        _is_peer(case, peer, source, target) and port in [_port(one, target) for one in rule.get("ports", [])]
        for rule in rules
        for peer in rule.get("to", [])
    )


def test_helms_test_reaches_the_api_whoever_else_may() -> None:
    rendering = render("ingress")
    (tester,) = [pod for pod in rendering.pods if pod.owner == "Pod/timestep-test"]
    assert permits("ingress", tester, pods("ingress")["api"], 8000)


@pytest.mark.parametrize("case", CASES)
def test_every_pod_resolves_names(case: str) -> None:
    for pod in pods(case).values():
        policies = applying(case, pod, "Egress")
        asked = [
            one.get("port")
            for policy in policies
            for rule in policy["spec"].get("egress", [])
            for one in rule.get("ports", [{}])
        ]
        assert not policies or 53 in asked or None in asked, pod.owner


def test_the_port_of_a_database_of_ones_own_is_open() -> None:
    for source in ("api", "prefect-server", "migrate", "worker", "flow-run"):
        policies = applying("external-database", pods("external-database")[source], "Egress")
        ports = [
            one["port"]
            for policy in policies
            for rule in policy["spec"]["egress"]
            for one in rule.get("ports", [])
            if "port" in one
        ]
        assert 6432 in ports, source


def test_the_policies_of_a_case_have_names_of_their_own() -> None:
    names = sorted(
        (one["metadata"].get("namespace", NAMESPACE), one["metadata"]["name"])
        for one in render("job-namespace").all("NetworkPolicy")
    )
    assert all(one != other for one, other in pairwise(names))
