"""What helm makes of the chart: its documents and the pods in them."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import yaml

from tests.charts.tools import helm
from tests.conftest import ROOT

CHART = ROOT / "charts" / "timestep"
CASES = Path(__file__).with_name("values")
NAMESPACE = "work"
RELEASE = "timestep"

Document = dict[str, Any]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes takes it: a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise AssertionError(f"{sorted(twice)} stands twice{node.start_mark}")
        return cast(dict[Any, Any], super().construct_mapping(node, deep=deep))


@dataclass(frozen=True)
class Pod:
    """A pod that the chart makes, or makes others make."""

    owner: str  # kind/name
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def environment(self) -> Iterator[dict[str, Any]]:
        for container in self.containers:
            yield from container.get("env", [])


@dataclass(frozen=True)
class Rendering:
    """The documents of one rendering, by kind and name."""

    documents: tuple[Document, ...]

    def all(self, kind: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {document["metadata"]["name"] for document in self.all(kind)}

    def one(self, kind: str, name: str) -> Document:
        found = [document for document in self.all(kind) if document["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind}/{name}; there are {sorted(self.names(kind))}"
        return found[0]

    @cached_property
    def pods(self) -> list[Pod]:
        """Pods of workloads and hooks."""
        return [
            _pod(document, document["spec"]["template"])
            for document in self.documents
            if document["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job")
        ] + [_pod(document, document) for document in self.all("Pod")]

    @cached_property
    def job_templates(self) -> dict[str, dict[str, Any]]:
        """Prefect's base job templates, by file name."""
        (register,) = [one for one in self.all("ConfigMap") if one["metadata"]["name"].endswith("-register")]
        return {name: json.loads(text) for name, text in register["data"].items() if name.endswith("-template.json")}


def _pod(document: Document, template: dict[str, Any]) -> Pod:
    metadata = template["metadata"]
    owner = f"{document['kind']}/{document['metadata']['name']}"
    return Pod(owner, metadata.get("labels", {}), metadata.get("annotations", {}), template["spec"])


def run_helm(major: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm without a cluster and without the user's own helm and cluster settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    environment = kept | {"KUBECONFIG": os.devnull}
    command = [str(helm(major)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def arguments_of(case: str, *more: str, release: str = RELEASE, chart: Path = CHART) -> list[str]:
    """What `helm template` is told for a case, a file of the folder ``values``."""
    # A cluster has jobs: what must not be applied without helm is rendered for clusters alone.
    cluster = ["--namespace", NAMESPACE, "--api-versions", "batch/v1/Job"]
    return [release, str(chart), *cluster, "--values", str(CASES / f"{case}.yaml"), *more]


@cache
def render(case: str, *more: str, major: int = 4, release: str = RELEASE, chart: Path = CHART) -> Rendering:
    """The chart with the values of a case, rendered once per process."""
    done = run_helm(major, "template", *arguments_of(case, *more, release=release, chart=chart))
    assert done.returncode == 0, done.stderr
    return Rendering(tuple(document for document in yaml.load_all(done.stdout, Loader=_Loader) if document))


def refusal(major: int, *arguments: str, release: str = RELEASE) -> str:
    """What helm says of values that it must refuse."""
    done = run_helm(major, "template", release, str(CHART), "--namespace", NAMESPACE, *arguments)
    assert done.returncode != 0, f"{arguments} were taken"
    return done.stderr.strip()
