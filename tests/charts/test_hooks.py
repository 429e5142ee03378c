"""Helm's hooks come in an order in which each finds what it needs, and leave nothing behind."""

from collections.abc import Iterator

import pytest

from tests.charts.conftest import ALL_CASES
from tests.charts.rendering import Document, Rendering, render

HOOK = "helm.sh/hook"
pytestmark = pytest.mark.parametrize("case", ALL_CASES)


def events(document: Document) -> set[str]:
    return set(filter(None, document["metadata"].get("annotations", {}).get(HOOK, "").replace(" ", "").split(",")))


def weight(document: Document) -> int:
    return int(document["metadata"]["annotations"].get("helm.sh/hook-weight", "0"))


def hooks(rendering: Rendering) -> Iterator[Document]:
    """All hooks but helm's tests, which run when someone asks for them."""
    return (one for one in rendering.documents if events(one) - {"test"})


def role(job: Document) -> str:
    """What the job's container does: the role of the image, with `--forget` where it is told."""
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return f"{words[0]} --forget" if "--forget" in words else str(words[0])


def needs(job: Document) -> Iterator[tuple[str, str]]:
    """Kinds and names of what a job's pod can't start without."""
    spec = job["spec"]["template"]["spec"]
    yield "ServiceAccount", spec.get("serviceAccountName", "default")
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]


def test_hooks_are_removed_when_they_succeed_and_before_they_are_made_again(case: str) -> None:
    for hook in hooks(render(case)):
        policies = hook["metadata"]["annotations"]["helm.sh/hook-delete-policy"].replace(" ", "").split(",")
        assert "before-hook-creation" in policies, hook["metadata"]["name"]
        # Uninstall leaves hooks alone: what isn't removed now stays for ever.
        assert "hook-succeeded" in policies, hook["metadata"]["name"]


def test_hooks_find_their_account_and_files(case: str) -> None:
    rendering = render(case)
    for job in (one for one in hooks(rendering) if one["kind"] == "Job"):
        for event in events(job):
            for kind, name in needs(job):
                if name in ("default", "our-agents"):  # of the namespace, of the user
                    continue
                found = rendering.one(kind, name)
                made_before = event in events(found) and weight(found) < weight(job)
                # After an install, and before an upgrade or a deletion, the chart's own objects are there; yet those
                # that an upgrade brings are not there before it.
                there_already = not events(found) and event in (
                    "post-install",
                    "post-upgrade",
                    "post-rollback",
                    "pre-delete",
                )
                assert made_before or there_already, f"{event} {job['metadata']['name']}: {kind} {name}"


def test_rights_of_hooks_come_before_them(case: str) -> None:
    rendering = render(case)
    for binding in rendering.all("RoleBinding"):
        for subject in binding["subjects"]:
            for job in (one for one in hooks(rendering) if one["kind"] == "Job"):
                if job["spec"]["template"]["spec"].get("serviceAccountName") == subject["name"] and events(binding):
                    shared = events(job) & events(binding)
                    assert not shared or weight(binding) < weight(job), binding["metadata"]["name"]


def test_secrets_are_made_before_whatever_reads_them(case: str) -> None:
    rendering = render(case)
    jobs = [one for one in rendering.all("Job") if events(one)]
    makers = [one for one in jobs if role(one) == "secrets"]
    assert all(events(one) == {"pre-install", "pre-upgrade"} for one in makers)
    for maker in makers:
        for other in jobs:
            if other is not maker and events(other) & events(maker):
                assert weight(maker) < weight(other), other["metadata"]["name"]


def test_uninstall_forgets_what_the_chart_generated(case: str) -> None:
    jobs = {role(one): one for one in render(case).all("Job") if events(one) - {"test"}}
    assert ("secrets" in jobs) == ("secrets --forget" in jobs)
    if "secrets" in jobs:
        forget = jobs["secrets --forget"]
        assert events(forget) == {"pre-delete"}
        made, forgotten = (
            one["spec"]["template"]["spec"]["containers"][0]["args"] for one in (jobs["secrets"], forget)
        )
        assert set(made) - set(forgotten) <= {"--database-host"} | {
            word for word in made if made[made.index(word) - 1] == "--database-host"
        }


def test_migrations_come_before_servers_and_registration_after_them(case: str) -> None:
    rendering = render(case)
    (migrate,) = [one for one in rendering.all("Job") if role(one) == "migrate"]
    (register,) = [one for one in rendering.all("Job") if role(one) == "register"]
    if case == "gitops":
        assert not events(register) and not events(migrate)
        return
    assert events(register) == {"post-install", "post-upgrade", "post-rollback"}
    if rendering.all("StatefulSet"):
        # The database comes with the release: before that there is nothing to migrate.
        assert not events(migrate)
    else:
        assert events(migrate) == {"pre-install", "pre-upgrade"}
    for pod in rendering.pods:
        words = pod.spec["containers"][0].get("args", [""])
        if words[0] in ("api", "prefect-server", "worker", "warm-worker"):
            waits = [container["args"] for container in pod.spec.get("initContainers", [])]
            assert ["wait"] in waits, pod.owner


def test_jobs_end(case: str) -> None:
    for job in render(case).all("Job"):
        spec = job["spec"]
        assert spec["template"]["spec"]["restartPolicy"] in ("Never", "OnFailure")
        # One that can't succeed says so to helm before its patience ends.
        assert "backoffLimit" in spec and "activeDeadlineSeconds" in spec, job["metadata"]["name"]
