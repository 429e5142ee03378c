"""What the service may ask of Kubernetes: exactly this, in its own namespaces."""

from typing import Any

import pytest

from tests.charts.conftest import ALL_CASES
from tests.charts.jobs import prepared_jobs
from tests.charts.rendering import NAMESPACE, render

Rule = tuple[str, str, tuple[str, ...], tuple[str, ...]]

WORKER: set[Rule] = {
    ("batch", "jobs", (), ("create", "delete", "get", "list", "watch")),
    ("", "pods", (), ("get", "list", "watch")),
    ("", "pods/log", (), ("get",)),
    ("", "events", (), ("create",)),
}


def secrets_rules(*names: str) -> set[Rule]:
    """Of the job that makes the Secrets: the right to create knows no names."""
    return {("", "secrets", (), ("create",)), ("", "secrets", tuple(sorted(names)), ("delete", "get", "patch"))}


def rules(case: str) -> dict[tuple[str, str], set[Rule]]:
    """What each role allows, by namespace and name."""
    return {
        (role["metadata"]["namespace"], role["metadata"]["name"]): {
            (group, resource, tuple(sorted(rule.get("resourceNames", []))), tuple(sorted(rule["verbs"])))
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
        for role in render(case).all("Role")
    }


GENERATED = ("timestep-database", "timestep-service-key", "timestep-prefect-auth", "timestep-api-key")


def test_the_rights_of_the_defaults() -> None:
    assert rules("defaults") == {
        (NAMESPACE, "timestep-worker"): WORKER,
        (NAMESPACE, "timestep-secrets"): secrets_rules(*GENERATED),
    }


def test_jobs_in_a_namespace_of_their_own_move_the_rights_there() -> None:
    assert rules("job-namespace") == {
        ("jobs", "timestep-worker"): WORKER,
        (NAMESPACE, "timestep-secrets"): secrets_rules(*GENERATED),
        # The first API key isn't copied there.
        ("jobs", "timestep-secrets"): secrets_rules(*GENERATED[:3]),
    }


def test_without_generated_secrets_nobody_may_write_any() -> None:
    assert rules("existing-secrets") == {(NAMESPACE, "timestep-worker"): WORKER}


def test_without_hooks_nobody_may_delete_secrets() -> None:
    of_secrets = rules("gitops")[NAMESPACE, "timestep-secrets"]
    assert of_secrets == {("", "secrets", (), ("create",)), ("", "secrets", tuple(sorted(GENERATED)), ("get", "patch"))}


@pytest.mark.parametrize("case", ALL_CASES)
def test_every_binding_gives_a_role_to_an_account_of_the_release(case: str) -> None:
    rendering = render(case)
    roles = set(rules(case))
    bound: set[tuple[str, str]] = set()
    for binding in rendering.all("RoleBinding"):
        assert binding["roleRef"]["kind"] == "Role"
        bound.add((binding["metadata"]["namespace"], binding["roleRef"]["name"]))
        for subject in binding["subjects"]:
            assert subject["kind"] == "ServiceAccount" and subject["namespace"] == NAMESPACE
            assert subject["name"] in rendering.names("ServiceAccount")
    assert bound == roles


@pytest.mark.parametrize("case", ALL_CASES)
def test_only_pods_that_ask_kubernetes_have_a_token(case: str) -> None:
    rendering = render(case)
    asking = {subject["name"] for binding in rendering.all("RoleBinding") for subject in binding["subjects"]}
    for pod in [*rendering.pods, *prepared_jobs(case)]:
        expected = pod.spec["serviceAccountName"] in asking
        assert pod.spec["automountServiceAccountToken"] is expected, pod.owner
    for account in rendering.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False, account["metadata"]["name"]


@pytest.mark.parametrize("case", ALL_CASES)
def test_a_token_is_of_one_role(case: str) -> None:
    owners: dict[str, list[str]] = {}
    for pod in render(case).pods:
        if pod.spec["automountServiceAccountToken"]:
            owners.setdefault(pod.spec["serviceAccountName"], []).append(role(pod.spec))
    assert all(len(set(roles)) == 1 for roles in owners.values()), owners


def role(spec: dict[str, Any]) -> str:
    """The image's role that a pod runs as."""
    return str(spec["containers"][0]["args"][0])
