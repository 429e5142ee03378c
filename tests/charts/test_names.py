"""Names follow from the release's, are short enough for Kubernetes, and images come from one registry."""

import json
import re
from typing import Any

import pytest

from tests.charts.conftest import ALL_CASES
from tests.charts.jobs import manifests, prepared_jobs
from tests.charts.rendering import CHART, render

LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LONG = "a-release-whose-name-is-as-long-as-helm-lets-it-be-53"


@pytest.mark.parametrize("release", ["timestep", "my-timestep", "dev", LONG, f"timestep-{LONG[:44]}"])
@pytest.mark.parametrize("case", ["defaults", "split", "job-namespace"])
def test_names_and_labels_are_short_enough(case: str, release: str) -> None:
    assert len(release) <= 53
    for document in render(case, release=release).documents:
        name = document["metadata"]["name"]
        # Services, StatefulSets and Jobs must; labels are made of the others' names.
        assert len(name) <= 63 and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name), name
        if document["kind"] == "StatefulSet":
            assert len(name) <= 52, f"{name}: its pods have a label of it and a hash"
        for labels in _labels(document):
            for value in labels.values():
                assert len(value) <= 63 and LABEL.fullmatch(value), f"{name}: {value}"


@pytest.mark.parametrize(
    ("release", "full"), [("timestep", "timestep"), ("my-timestep-2", "my-timestep-2"), ("dev", "dev-timestep")]
)
def test_everything_is_named_after_the_release(release: str, full: str) -> None:
    names = {one["metadata"]["name"] for one in render("defaults", release=release).documents}
    assert {f"{full}-{part}" for part in ("api", "prefect-server", "model-server", "database")} <= names
    assert all(name.startswith(f"{full}-") for name in names)


def test_two_releases_share_nothing() -> None:
    one, other = (
        {(made["kind"], made["metadata"]["name"]) for made in render("defaults", release=release).documents}
        for release in ("one", "two")
    )
    assert not one & other


@pytest.mark.parametrize("case", ALL_CASES)
def test_every_image_is_the_one_image(case: str) -> None:
    images = {container["image"] for pod in render(case).pods for container in pod.containers}
    (image,) = images
    expected = {
        "air-gapped": f"registry.local:5000/mirror/timestep:1.2.3@sha256:{'0123456789abcdef' * 4}",
    }
    assert image == expected.get(case, f"timestep:{version()}")
    own = {"gpu-training": {"training-job-template.json": "registry.example.com/timestep-cuda:1"}}.get(case, {})
    for name, made in manifests(case).items():
        used = {container["image"] for container in made["spec"]["template"]["spec"]["containers"]}
        assert used == {own.get(name, image)}


def test_pull_secrets_reach_every_pod() -> None:
    for pod in [*render("air-gapped").pods, *prepared_jobs("air-gapped")]:
        assert pod.spec["imagePullSecrets"] == [{"name": "our-pull-secret"}], pod.owner


def version() -> str:
    """The project's version, which is the image's tag."""
    text = (CHART.parents[1] / "pyproject.toml").read_text()
    return str(re.findall(r'^version = "(.*)"', text, re.MULTILINE)[0])


def test_the_chart_is_of_the_projects_version() -> None:
    chart = (CHART / "Chart.yaml").read_text()
    assert f'appVersion: "{version()}"' in chart


@pytest.mark.parametrize("word", ["lookup", "randAlphaNum", "randAlpha", "genCA", "genPrivateKey", "uuidv4", "now"])
def test_templates_ask_no_cluster_and_draw_nothing_at_random(word: str) -> None:
    for path in (CHART / "templates").rglob("*"):
        if path.is_file():
            actions = re.findall(r"\{\{.*?\}\}", path.read_text(), re.DOTALL)
            code = [action for action in actions if not action.startswith(("{{/*", "{{- /*"))]
            assert not [one for one in code if re.search(rf"[({{|\s]{word}\b(?![-\"'])", _without_texts(one))], (
                path.name
            )


def _without_texts(action: str) -> str:
    return re.sub(r'"(\\.|[^"\\])*"', '""', action)


def test_one_resource_per_file_named_after_component_and_kind() -> None:
    kinds = {path.stem.rpartition("-")[2] for path in (CHART / "templates").glob("*.yaml") if path.stem != "validate"}
    rendered = {one["kind"].lower() for case in ALL_CASES for one in render(case).documents}
    assert kinds <= rendered
    for path in (CHART / "templates").rglob("*.yaml"):
        assert len(re.findall(r"^kind:", path.read_text(), re.MULTILINE)) <= 1, path.name


def _labels(document: dict[str, Any]) -> list[dict[str, str]]:
    found = [document["metadata"].get("labels", {})]
    template = document.get("spec", {}).get("template")
    if isinstance(template, dict):
        found.append(template["metadata"].get("labels", {}))
    return found


def test_checksums_restart_what_reads_the_agents() -> None:
    def annotations(text: str) -> dict[str, dict[str, str]]:
        made = render("defaults", "--set-json", f"agents.files={json.dumps({'a.py': text})}")
        return {pod.spec["containers"][0]["args"][0]: pod.annotations for pod in made.pods}

    one, other = annotations("a = 1"), annotations("a = 2")
    assert {role for role in one if one[role] != other[role]} == {"api", "warm-worker", "register"}


def test_a_changed_job_template_registers_anew() -> None:
    def names(seconds: int) -> set[str]:
        made = render("gitops", "--set", f"worker.job.ttlSecondsAfterFinished={seconds}")
        return {name for name in made.names("Job") if "-register" in name}

    # Without helm a job that exists can't be changed: another content has another name.
    assert names(60) != names(61) and len(names(60)) == 1
