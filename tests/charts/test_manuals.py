"""The documents name values that there are, and what they show as values is taken."""

import re
from pathlib import Path

import pytest
import yaml

from charts.documents import read
from tests.charts.jobs import chooses, manifests
from tests.charts.rendering import CHART, RELEASE, run_helm
from tests.conftest import ROOT

MANUALS = ("docs/kubernetes.md", "docs/k3s.md", "charts/timestep/README.md.in")
VALUES = read((CHART / "values.yaml").read_text())
PATHS = {row.path for value in VALUES for row in value.rows()}
GROUPS = {value.path for value in VALUES if value.is_group}


def blocks() -> list[tuple[str, str]]:
    """The YAML blocks of the documents that are values, by document and first line."""
    return [
        (manual, text)
        for manual in MANUALS
        for text in re.findall(r"```yaml\n(.*?)```", (ROOT / manual).read_text(), re.DOTALL)
        if set(yaml.safe_load(text)) <= GROUPS | PATHS
    ]


@pytest.mark.parametrize(("manual", "text"), blocks(), ids=lambda value: value.partition("\n")[0])
def test_values_that_are_shown_are_taken(manual: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    done = run_helm(4, "template", RELEASE, str(CHART), "--values", str(path))
    assert done.returncode == 0, f"{manual}: {done.stderr}"


def test_the_documents_show_values() -> None:
    assert {manual for manual, _ in blocks()} == {"docs/kubernetes.md", "docs/k3s.md"}


@pytest.mark.parametrize("manual", MANUALS)
def test_values_that_are_named_exist(manual: str) -> None:
    words = re.findall(r"`([A-Za-z]+(?:\.[A-Za-z]+)+)[`=:\s]", (ROOT / manual).read_text())
    named = {word for word in words if word.partition(".")[0] in GROUPS}
    # Free maps hold what their own documents say.
    unknown = {word for word in named if word not in PATHS and not word.startswith(tuple(f"{path}." for path in FREE))}
    assert not unknown


@pytest.mark.parametrize("manual", ["docs/kubernetes.md", "charts/timestep/README.md.in"])
def test_jobs_that_outlive_the_release_are_deleted_by_labels_that_they_have(manual: str) -> None:
    text = (ROOT / manual).read_text().replace("RELEASE", RELEASE)
    (selector,) = re.findall(r"`kubectl -n NAMESPACE delete job --selector=(\S+)`", text)
    assert all(chooses(selector, made) for made in manifests("defaults").values())


FREE = {row.path for value in VALUES for row in value.rows() if row.extra.get("additionalProperties") is not None}
