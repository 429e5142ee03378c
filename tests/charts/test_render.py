"""helm 3 and helm 4 make the same of the chart, and Kubernetes 1.31 to 1.36 take it."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.charts.conftest import ALL_CASES
from tests.charts.jobs import chooses, manifests
from tests.charts.rendering import CASES, CHART, NAMESPACE, RELEASE, Document, render, run_helm
from tests.charts.schemas import FOREIGN_KINDS, VERSIONS, problems

MAJORS = (3, 4)


@pytest.fixture(scope="module")
def linted() -> dict[tuple[int, str], str]:
    """What `helm lint --strict` finds, by helm and case; '' where it finds nothing."""

    def lint(major: int, case: str) -> str:
        done = run_helm(major, "lint", "--strict", str(CHART), "--values", str(CASES / f"{case}.yaml"))
        return "" if done.returncode == 0 else done.stdout + done.stderr

    pairs = [(major, case) for major in MAJORS for case in ALL_CASES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(pairs, pool.map(lambda pair: lint(*pair), pairs), strict=True))


@pytest.mark.parametrize("case", ALL_CASES)
@pytest.mark.parametrize("major", MAJORS)
def test_lint_finds_nothing(major: int, case: str, linted: dict[tuple[int, str], str]) -> None:
    assert linted[major, case] == ""


@pytest.mark.parametrize("case", ALL_CASES)
def test_both_majors_render_the_same(case: str) -> None:
    def by_key(documents: tuple[Document, ...]) -> dict[tuple[str, str], Document]:
        return {(one["kind"], one["metadata"]["name"]): one for one in documents}

    assert by_key(render(case, major=3).documents) == by_key(render(case, major=4).documents)


@pytest.mark.parametrize("case", ALL_CASES)
def test_kubernetes_takes_every_document(case: str) -> None:
    found = [line for one in render(case).documents for version in VERSIONS for line in problems(one, version)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("case", ALL_CASES)
def test_kubernetes_takes_the_jobs_of_the_pools(case: str) -> None:
    for name, made in manifests(case).items():
        # Prefect demands these two in the pod, where Kubernetes knows none and drops them.
        pod = {key: value for key, value in made["spec"]["template"]["spec"].items() if key not in PREFECTS_OWN}
        template = made["spec"]["template"] | {"spec": pod}
        document = made | {"spec": made["spec"] | {"template": template}}
        found = [line for version in VERSIONS for line in problems(document, version)]
        assert not found, f"{name}: {found}"


PREFECTS_OWN = ("parallelism", "completions")


def test_only_kinds_of_others_go_unchecked() -> None:
    rendered = {(one["apiVersion"], one["kind"]) for case in ALL_CASES for one in render(case).documents}
    # Each is rendered somewhere, else its excuse is one too many.
    assert rendered >= FOREIGN_KINDS
    assert problems({"apiVersion": "example.com/v1", "kind": "Unknown"}, "1.34")


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    (deployment, *_) = render("defaults").all("Deployment")
    assert problems(deployment | {"spec": deployment["spec"] | {"replica": 2}}, "1.34")


def notes(case: str, *more: str) -> str:
    """What helm says after an installation with the values of a case."""
    # helm 3 asks a cluster for this; its lint renders them, too.
    values = ["--values", str(CASES / f"{case}.yaml"), *more]
    done = run_helm(4, "install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client", *values)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


@pytest.mark.parametrize("case", ALL_CASES)
def test_the_notes_say_where_things_are(case: str) -> None:
    said = notes(case)
    assert "helm test timestep -n work" in said
    assert "<no value>" not in said and "nil" not in said and "{{" not in said
    assert ("modelServer.enabled is off:" in said) is (case == "no-model-server")
    rendering = render(case)
    for claim in re.findall(r"volume claim (\S+):", said):
        owners = rendering.names("PersistentVolumeClaim") | {f"data-{one}-0" for one in rendering.names("StatefulSet")}
        assert claim in owners


@pytest.mark.parametrize(
    ("case", "more", "namespace"),
    [
        ("job-namespace", (), "jobs"),
        ("defaults", ("--set", "worker.serviceAccount.name=ours"), NAMESPACE),
        ("defaults", (), None),
        ("job-namespace", ("--set", "worker.enabled=false"), None),
    ],
)
def test_the_notes_say_how_jobs_go_that_outlive_the_release(
    case: str, more: tuple[str, ...], namespace: str | None
) -> None:
    commands = re.findall(r"kubectl -n (\S+) delete job --selector=(\S+)", notes(case, *more))
    assert [where for where, _ in commands] == ([namespace] if namespace else [])
    assert all(chooses(selector, made) for _, selector in commands for made in manifests(case).values())


def test_what_deletes_secrets_is_rendered_for_a_cluster_alone() -> None:
    # `helm template | kubectl apply` would run it.
    done = run_helm(4, "template", "timestep", str(CHART))
    assert done.returncode == 0 and "--forget" not in done.stdout
