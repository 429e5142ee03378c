"""Every pod is one that Pod Security Standard *restricted* admits, and reads its secrets from Secrets."""

import re
from typing import Any

import pytest

from tests.charts.conftest import ALL_CASES
from tests.charts.jobs import prepared_jobs
from tests.charts.rendering import CHART, Pod, Rendering, render

# Volumes that the standard allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
# Variables that hold a secret, or may hold one within an address.
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH|_KEY$|DATABASE_URL|CONNECTION_URL|STORAGE_URL|REDIS.*URL")
# These name a Secret and a key in it.
REFERENCE = re.compile(r"_SECRET_(NAME|KEY)$")
PLAIN = {"TIMESTEP_STORAGE_URL": re.compile(r"local:///[\w/-]+")}
CREDENTIALS = re.compile(r"[a-z0-9+]+://[^/\s:@]*:[^/\s@]+@")

pytestmark = pytest.mark.parametrize("case", ALL_CASES)


def pods(case: str) -> list[Pod]:
    return [*render(case).pods, *prepared_jobs(case)]


def test_the_pod_security_standard_restricted_admits_every_pod(case: str) -> None:
    for pod in pods(case):
        spec = pod.spec
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec), pod.owner
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True and security.get("runAsUser", 1) != 0, pod.owner
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        assert "sysctls" not in security and "seLinuxOptions" not in security, pod.owner
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= VOLUMES, f"{pod.owner}: {volume}"
        for container in pod.containers:
            own = container["securityContext"]
            where = f"{pod.owner}, {container['name']}"
            assert own["allowPrivilegeEscalation"] is False, where
            assert own["capabilities"] == {"drop": ["ALL"]}, where
            assert not own.get("privileged") and own.get("runAsUser", 1) != 0, where
            assert own.get("runAsNonRoot", True) is True, where
            assert own.get("procMount", "Default") == "Default" and "seLinuxOptions" not in own, where
            assert own.get("seccompProfile", {"type": "RuntimeDefault"}) == {"type": "RuntimeDefault"}, where
            assert not [port for port in container.get("ports", []) if "hostPort" in port], where


def test_root_file_systems_are_read_only_and_what_is_written_is_a_volume(case: str) -> None:
    for pod in pods(case):
        for container in pod.containers:
            where = f"{pod.owner}, {container['name']}"
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, where


def test_every_container_says_what_it_needs(case: str) -> None:
    for pod in pods(case):
        for container in pod.containers:
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]), f"{pod.owner}, {container['name']}"
            assert "memory" in resources["limits"], f"{pod.owner}, {container['name']}"


def test_secrets_come_from_secrets(case: str) -> None:
    for pod in pods(case):
        for variable in pod.environment:
            name = variable["name"]
            if SECRET.search(name) and not REFERENCE.search(name) and "value" in variable:
                allowed = PLAIN.get(name)
                assert allowed and allowed.fullmatch(variable["value"]), f"{pod.owner}: {variable}"


def test_no_document_holds_a_secret(case: str) -> None:
    rendering = render(case)
    assert not rendering.all("Secret")
    for document in [*rendering.documents, *(pod.spec for pod in prepared_jobs(case))]:
        found = [text for text in _texts(document) if CREDENTIALS.search(text)]
        assert not found, found


def test_arguments_name_no_secret_variable(case: str) -> None:
    # Kubernetes expands $(NAME) in arguments, which every process on the node can read.
    for pod in pods(case):
        for container in pod.containers:
            words = [*container.get("command", []), *container.get("args", [])]
            assert not [word for word in words if "$(" in word and SECRET.search(word)], pod.owner


def test_every_secret_is_one_that_is_generated_or_named_by_the_values(case: str) -> None:
    rendering = render(case)
    generated = _generated(rendering)
    given = (CHART.parents[1] / "tests/charts/values" / f"{case}.yaml").read_text()
    for pod in pods(case):
        for variable in pod.environment:
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference is None:
                continue
            keys = generated.get(reference["name"])
            if keys is not None:
                assert reference["key"] in keys, f"{pod.owner}: {variable}"
            else:
                assert f"{reference['name']}" in given, f"{pod.owner}: {variable}"


def test_two_renderings_are_alike(case: str) -> None:
    # Nothing is drawn at random or looked up, so that GitOps sees no drift.
    assert render(case).documents == render.__wrapped__(case).documents


def _generated(rendering: Rendering) -> dict[str, set[str]]:
    """The Secrets that the job of the role ``secrets`` makes, and their keys."""
    keys = {"database": {"password", "url"}, "service-key": {"key"}, "prefect-auth": {"auth"}, "api-key": {"key"}}
    made: dict[str, set[str]] = {}
    for pod in rendering.pods:
        for container in pod.containers:
            words = container.get("args", [])
            if "secrets" in words and "--forget" not in words:
                prefix = words[words.index("--prefix") + 1]
                made |= {f"{prefix}-{name}": keys[name] for name in keys if name in words}
    return made


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, one in value.items() for text in [str(key), *_texts(one)]]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []
