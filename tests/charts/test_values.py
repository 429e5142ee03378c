"""Every value does something, and nothing else is taken."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.documents import Value, read
from tests.charts.rendering import CHART, NAMESPACE, RELEASE, refusal, run_helm

VALUES = [row for value in read((CHART / "values.yaml").read_text()) for row in value.rows() if not row.is_group]

# Lists and maps that aren't of strings, by the last word of their path; %s is the mark to be found again.
SHAPES: dict[str, Any] = {
    "extraEnv": [{"name": "%s", "value": "x"}],
    "extraEnvFrom": [{"secretRef": {"name": "%s"}}],
    "tolerations": [{"key": "%s", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"%s": []}}},
    "resources": {"requests": {"cpu": 1, "memory": 1, "%s": 1}, "limits": {"memory": 1}},
    "parentRefs": [{"name": "%s"}],
    "step": [{"slug": "%s"}],
    "batch": [{"slug": "%s"}],
    "files": {"%s.py": ""},
    "existingFiles": ["%s.py"],
    "extraEgress": [{"to": [{"podSelector": {"matchLabels": {"%s": ""}}}]}],
    "apiFrom": [{"podSelector": {"matchLabels": {"%s": ""}}}],
    "prefectFrom": [{"podSelector": {"matchLabels": {"%s": ""}}}],
}

# What is true in each of these is rendered side by side with the marks: some values stand in for others.
ON = {
    "prefectServer.auth.enabled": True,
    "networkPolicy.enabled": True,
    "metrics.serviceMonitor.enabled": True,
    "ingress.enabled": True,
    "ingress.tls.enabled": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "all made by the chart": ON
    | dict.fromkeys([value.path for value in VALUES if value.name.startswith("existing")], None)
    | {f"{name}.serviceAccount.name": None for name in ("database", "prefectServer", "api", "modelServer")}
    | {f"{name}.serviceAccount.name": None for name in ("warmWorker", "worker", "worker.job")}
    | {"global.imageRegistry": None, "worker.job.namespace": None, "prefectServer.url": None}
    | {"fullnameOverride": None, "worker.job.image": None, "training.image": None, "prefectServer.uiURL": None}
    | {"prefectServer.split.enabled": False},
    "all there already": ON
    | {"agents.files": None, "prefectServer.url": None, "storage.existingSecret": None}
    | {"worker.job.namespace": None, "prefectServer.split.enabled": False},
    "a bucket, Redis, a gateway, scaled": ON
    | {"prefectServer.split.enabled": True, "database.enabled": False, "ingress.enabled": False}
    | {"gateway.enabled": True, "prefectServer.url": None, "agents.files": None, "networkPolicy.openEgress": False}
    | {"storage.existingClaim": None}
    | {f"{name}.autoscaling.enabled": True for name in ("api", "modelServer", "warmWorker")},
    "a Prefect server elsewhere": {"prefectServer.enabled": False, "agents.files": None, "storage.existingClaim": None}
    | {"networkPolicy.enabled": True, "networkPolicy.openEgress": False},
}


def is_marked(value: Value) -> bool:
    """Whether a mark of our own can stand for it: not for switches and choices."""
    return not isinstance(value.default, bool) and "enum" not in value.extra


def mark(number: int, value: Value) -> Any:
    """A value that is found again in what is rendered."""
    word = f"mark-{number}"
    if isinstance(value.default, int):
        return 41000 + number
    if value.name in SHAPES:
        return json.loads(json.dumps(SHAPES[value.name]).replace("%s", word))
    if isinstance(value.default, list):
        return [word]
    return {word: word} if isinstance(value.default, dict) else word


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``; None is left out."""
    made: dict[str, Any] = {}
    for path, value in flat.items():
        if value is not None:
            *groups, name = path.split(".")
            place = made
            for group in groups:
                place = place.setdefault(group, {})
            place[name] = value
    return made


def rendered(folder: Path, name: str, flat: dict[str, Any]) -> str:
    path = folder / f"{re.sub('[^a-z]', '', name.lower())}.yaml"
    path.write_text(yaml.safe_dump(nested(flat)))
    done = run_helm(4, "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", str(path))
    assert done.returncode == 0, f"{name}: {done.stderr}"
    return done.stdout


def test_every_value_shows_in_what_is_rendered(tmp_path: Path) -> None:
    marks = {value.path: mark(number, value) for number, value in enumerate(VALUES) if is_marked(value)}
    texts = [rendered(tmp_path, name, marks | fixed) for name, fixed in VARIANTS.items()]
    everything = "\n".join(texts)
    numbers = {value.path: number for number, value in enumerate(VALUES)}
    unused = [
        path for path in marks if not re.search(rf"\b(mark-{numbers[path]}|{41000 + numbers[path]})\b", everything)
    ]
    assert not unused


def test_every_switch_and_choice_changes_what_is_rendered(tmp_path: Path) -> None:
    hosts = {"api.host": "api.example.com", "prefectServer.host": "prefect.example.com"}
    beside: dict[str, dict[str, Any]] = {
        "database.enabled": {"database.existingSecret": "theirs"},
        "prefectServer.enabled": {"prefectServer.auth.existingSecret": "theirs"},
        "prefectServer.split.enabled": {"prefectServer.redis.existingSecret": "theirs"},
        "ingress.enabled": hosts,
        "ingress.tls.enabled": hosts | {"ingress.enabled": True},
        "gateway.enabled": hosts | {"gateway.parentRefs": [{"name": "public"}]},
        "gateway.https": hosts | {"gateway.parentRefs": [{"name": "public"}], "gateway.enabled": True},
        "networkPolicy.openEgress": {"networkPolicy.enabled": True},
        "modelServer.podDisruptionBudget.enabled": {"modelServer.replicas": 2},
    }

    # What goes with the other choice alone.
    along = {"prefectServer.enabled": {"prefectServer.url": "https://prefect.example.com/api"}}

    def changes(value: Value) -> bool:
        fixed = beside.get(value.path, {})
        others = [one for one in value.extra.get("enum", [True, False]) if one != value.default]
        texts = {
            rendered(tmp_path, f"{value.path} {one}", fixed | along.get(value.path, {}) | {value.path: one})
            for one in others
        }
        return rendered(tmp_path, value.path, fixed) not in texts

    switches = [value for value in VALUES if not is_marked(value)]
    with ThreadPoolExecutor(2) as pool:
        idle = [value.path for value, changed in zip(switches, pool.map(changes, switches), strict=True) if not changed]
    assert not idle


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize(
    ("given", "named"),
    [("nonsense=1", "nonsense"), ("api.replica=3", "replica"), ("image.pullPolicy=Sometimes", "pullPolicy")],
)
def test_unknown_values_are_refused_by_name(major: int, given: str, named: str) -> None:
    said = refusal(major, "--set", given)
    assert named in said and "schema" in said


@pytest.mark.parametrize("major", [3, 4])
def test_values_of_another_type_are_refused(major: int) -> None:
    assert "replicas" in refusal(major, "--set", "api.replicas=two")


def test_no_value_is_a_secret_itself() -> None:
    # Names of Secrets, keys in them, and whether there is a login: never the login.
    words = re.compile(r"password|secret|token|credential|auth", re.IGNORECASE)
    plain = [
        value.path
        for value in VALUES
        if words.search(value.name) and not value.name.endswith(("Secret", "Secrets", "Key"))
    ]
    assert not plain


def test_a_users_own_patience_with_a_lost_node_counts_and_other_tolerations_stand_beside_it(tmp_path: Path) -> None:
    lost, unready = "node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"
    flat = {
        "nodeLossSeconds": 7,
        "api.tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        "worker.tolerations": [{"key": lost, "operator": "Exists", "tolerationSeconds": 99}],
        "modelServer.tolerations": [{"operator": "Exists"}],
    }
    documents = yaml.safe_load_all(rendered(tmp_path, "tolerations", flat))
    found = {
        document["metadata"]["name"]: {
            one.get("key"): one.get("tolerationSeconds")
            for one in document["spec"]["template"]["spec"]["tolerations"]
            if one.get("effect") != "NoSchedule"
        }
        for document in documents
        if document and document["kind"] == "Deployment"
    }
    assert found[f"{RELEASE}-api"] == {lost: 7, unready: 7}
    assert found[f"{RELEASE}-worker"] == {lost: 99, unready: 7}
    assert found[f"{RELEASE}-model-server"] == {None: None}
