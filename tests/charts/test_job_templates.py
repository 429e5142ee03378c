"""The job templates: what values, deployments and runs say is in the job that the worker makes."""

import json
from typing import Any

import jsonschema
import pytest

from tests.charts.conftest import ALL_CASES
from tests.charts.jobs import AUTH, job, manifests
from tests.charts.rendering import NAMESPACE, render


def container(made: dict[str, Any]) -> dict[str, Any]:
    """The one container of a job."""
    (only,) = made["spec"]["template"]["spec"]["containers"]
    return dict(only)


def environment(made: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(made)["env"]}


@pytest.mark.parametrize("case", ALL_CASES)
def test_the_pools_have_their_templates(case: str) -> None:
    names = {"base-job-template.json"} | ({"training-job-template.json"} if case != "no-warm-workers" else set())
    assert set(render(case).job_templates) == names


@pytest.mark.parametrize("case", ALL_CASES)
def test_the_templates_are_what_prefect_takes(case: str) -> None:
    for template in render(case).job_templates.values():
        jsonschema.Draft202012Validator.check_schema(template["variables"])
        defaults = {
            name: one["default"] for name, one in template["variables"]["properties"].items() if "default" in one
        }
        # Prefect checks a deployment's variables against it, the defaults among them.
        jsonschema.validate(defaults, template["variables"])
        text = json.dumps(template["job_configuration"])
        assert all(f"{{{{ {name} }}}}" in text for name in template["variables"]["properties"]), (
            "a variable without use"
        )


@pytest.mark.parametrize("case", ALL_CASES)
def test_jobs_are_never_started_again_by_kubernetes(case: str) -> None:
    for made in manifests(case).values():
        assert made["spec"]["backoffLimit"] == 0
        assert made["spec"]["template"]["spec"]["restartPolicy"] == "Never"
        assert made["spec"]["ttlSecondsAfterFinished"] > 0
        # The entry of the image is kept: it hands signals on.
        assert "command" not in container(made) and container(made)["args"] == ["job"]


@pytest.mark.parametrize("case", ALL_CASES)
def test_nothing_that_the_worker_holds_is_in_the_job(case: str) -> None:
    text = json.dumps(manifests(case))
    assert AUTH not in text
    assert "{{" not in text, "a variable that nobody fills in"


def test_a_run_may_ask_for_more_and_can_not_lose_what_the_pod_needs() -> None:
    template = render("defaults").job_templates["base-job-template.json"]
    made = job(
        template,
        env={"EXTRA": "1", "TIMESTEP_MODEL": "other", "TIMESTEP_SERVICE_KEY": "stolen"},
        labels={"team": "a"},
        memory_limit="8Gi",
        node_selector={"disk": "fast"},
        tolerations=[{"key": "a", "operator": "Exists"}],
    )
    asked = environment(made)
    assert asked["EXTRA"] == "1" and asked["TIMESTEP_MODEL"] == "other"
    assert asked["TIMESTEP_SERVICE_KEY"] == {"secretKeyRef": {"name": "timestep-service-key", "key": "key"}}
    assert container(made)["resources"]["limits"]["memory"] == "8Gi"
    pod = made["spec"]["template"]
    assert pod["metadata"]["labels"]["team"] == "a" and pod["spec"]["nodeSelector"] == {"disk": "fast"}


def test_training_differs_where_the_values_say_so() -> None:
    plain, training = (manifests("gpu-training")[f"{name}-job-template.json"] for name in ("base", "training"))
    spec = training["spec"]["template"]["spec"]
    assert container(training)["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
    }
    assert spec["runtimeClassName"] == "nvidia" and spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu" and spec["priorityClassName"] == "our-batch"
    assert training["spec"]["activeDeadlineSeconds"] == 86400 and "activeDeadlineSeconds" not in plain["spec"]
    assert environment(training)["OMP_NUM_THREADS"] == "2" and "OMP_NUM_THREADS" not in environment(plain)
    assert "nvidia.com/gpu" not in json.dumps(plain)


def test_jobs_in_a_namespace_of_their_own_find_the_service() -> None:
    for made in manifests("job-namespace").values():
        assert made["metadata"]["namespace"] == "jobs"
        asked = environment(made)
        assert asked["TIMESTEP_PREFECT_API_URL"] == f"http://timestep-prefect-server.{NAMESPACE}.svc:4200/api"
        assert asked["TIMESTEP_MODEL_SERVER_URL"] == f"http://timestep-model-server.{NAMESPACE}.svc:8001"
        assert "persistentVolumeClaim" not in json.dumps(made)
    (worker,) = [pod for pod in render("job-namespace").pods if pod.spec["containers"][0]["args"] == ["worker"]]
    watched = {one["name"]: one.get("value") for one in worker.environment}
    assert watched["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] == "jobs"


def test_the_worker_observes_the_jobs_it_makes() -> None:
    (worker,) = [pod for pod in render("defaults").pods if pod.spec["containers"][0]["args"] == ["worker"]]
    variables = {one["name"]: one.get("value") for one in worker.environment}
    asked = variables["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ADDITIONAL_LABEL_FILTERS"]
    name, _, value = str(asked).partition("=")
    for made in manifests("defaults").values():
        assert made["metadata"]["labels"][name] == value
        assert made["spec"]["template"]["metadata"]["labels"][name] == value


def test_flow_runs_have_the_same_environment_as_warm_workers() -> None:
    # A step must find the same models, storage and keys wherever it runs.
    warm = next(pod for pod in render("agents").pods if pod.spec["containers"][0]["args"] == ["warm-worker"])
    in_warm = {one["name"]: one for one in warm.spec["containers"][0]["env"]}
    for made in manifests("agents").values():
        in_job = {one["name"]: one for one in container(made)["env"]}
        assert {name for name in in_warm if name.startswith(("TIMESTEP_", "OPENAI_"))} - set(in_job) <= WARM_ALONE
        assert all(in_job[name] == in_warm[name] for name in in_warm.keys() & in_job.keys())


# How many runs at a time: a job has one.
WARM_ALONE = {"TIMESTEP_WORKER_LIMIT"}


def test_schedules_are_registered_as_they_stand_in_the_values() -> None:
    data = render("agents").one("ConfigMap", "timestep-register")["data"]
    schedules = json.loads(data["schedules.json"])
    assert [one["slug"] for one in schedules["step"]] == ["morning"]
    assert schedules["batch"][0]["interval"] == 86400
