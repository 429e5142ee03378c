"""What refers to something refers to something that is there."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.charts.conftest import ALL_CASES
from tests.charts.jobs import manifests, prepared_jobs
from tests.charts.rendering import CASES, NAMESPACE, Document, Pod, Rendering, render

ADDRESSES = ("TIMESTEP_API_URL", "TIMESTEP_PREFECT_API_URL", "TIMESTEP_MODEL_SERVER_URL")
# Cases in which the Prefect UI has a public address: by the host of a route, or by the values' word.
PUBLIC = ("ingress", "gateway", "own-prefect")

pytestmark = pytest.mark.parametrize("case", ALL_CASES)


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    wanted = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
    tests = {
        "In": lambda one: labels.get(one["key"]) in one["values"],
        "NotIn": lambda one: labels.get(one["key"]) not in one["values"],
        "Exists": lambda one: one["key"] in labels,
        "DoesNotExist": lambda one: one["key"] not in labels,
    }
    return wanted.items() <= labels.items() and all(
        tests[one["operator"]](one) for one in selector.get("matchExpressions", [])
    )


def workloads(rendering: Rendering) -> Iterator[Document]:
    yield from rendering.all("Deployment")
    yield from rendering.all("StatefulSet")


def test_selectors_take_their_own_pods_and_no_others(case: str) -> None:
    rendering = render(case)
    everyone = [*rendering.pods, *prepared_jobs(case)]
    for workload in workloads(rendering):
        selector = workload["spec"]["selector"]
        owner = f"{workload['kind']}/{workload['metadata']['name']}"
        assert [pod.owner for pod in everyone if matches(selector, pod.labels)] == [owner]


def test_pods_leave_a_lost_node_soon_unless_their_volume_is_there(case: str) -> None:
    for workload in workloads(render(case)):
        tolerations = workload["spec"]["template"]["spec"].get("tolerations", [])
        left = {one["key"]: one["tolerationSeconds"] for one in tolerations if one.get("effect") == "NoExecute"}
        lost = {f"node.kubernetes.io/{how}": 30 for how in ("not-ready", "unreachable")}
        assert left == ({} if workload["kind"] == "StatefulSet" else lost), workload["metadata"]["name"]


def test_services_lead_to_one_workload_and_to_ports_it_has(case: str) -> None:
    rendering = render(case)
    for service in rendering.all("Service"):
        chosen = [pod for pod in rendering.pods if matches(service["spec"]["selector"], pod.labels)]
        assert len(chosen) == 1, f"{service['metadata']['name']} leads to {[pod.owner for pod in chosen]}"
        ports = [port for container in chosen[0].spec["containers"] for port in container.get("ports", [])]
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert target in [one["name"] for one in ports] + [one["containerPort"] for one in ports], port


def test_budgets_and_scalers_have_their_workload(case: str) -> None:
    rendering = render(case)
    for budget in rendering.all("PodDisruptionBudget"):
        chosen = [one for one in rendering.pods if matches(budget["spec"]["selector"], one.labels)]
        assert len(chosen) == 1, budget["metadata"]["name"]
    for scaler in rendering.all("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        workload = rendering.one(target["kind"], target["name"])
        # Else each upgrade takes the pods back that the scaler made.
        assert "replicas" not in workload["spec"], target["name"]
        assert scaler["spec"]["minReplicas"] <= scaler["spec"]["maxReplicas"]


def test_routes_lead_to_ports_of_services(case: str) -> None:
    rendering = render(case)
    ports = {
        (service["metadata"]["name"], port[key])
        for service in rendering.all("Service")
        for port in service["spec"]["ports"]
        for key in ("name", "port")
    }
    backends = [
        (path["backend"]["service"]["name"], *path["backend"]["service"]["port"].values())
        for ingress in rendering.all("Ingress")
        for rule in ingress["spec"]["rules"]
        for path in rule["http"]["paths"]
    ] + [
        (backend["name"], backend["port"])
        for route in rendering.all("HTTPRoute")
        for rule in route["spec"]["rules"]
        for backend in rule["backendRefs"]
    ]
    assert set(backends) <= ports


def test_monitors_read_ports_of_services(case: str) -> None:
    rendering = render(case)
    for monitor in rendering.all("ServiceMonitor"):
        chosen = [
            one
            for one in rendering.all("Service")
            if matches(monitor["spec"]["selector"], one["metadata"].get("labels", {}))
        ]
        names = {port["name"] for service in chosen for port in service["spec"]["ports"]}
        assert chosen and {one["port"] for one in monitor["spec"]["endpoints"]} <= names, monitor["metadata"]["name"]


def test_volumes_are_there_and_mounted(case: str) -> None:
    rendering = render(case)
    given = case_text(case)
    for pod in [*rendering.pods, *prepared_jobs(case)]:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        workload = next(
            (one for one in rendering.all("StatefulSet") if pod.owner.endswith(one["metadata"]["name"])), {}
        )
        claimed = {one["metadata"]["name"] for one in workload.get("spec", {}).get("volumeClaimTemplates", [])}
        mounts = [mount for container in pod.containers for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == set(volumes) | claimed, pod.owner
        for container in pod.containers:
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(paths) == len(set(paths)), pod.owner
        for volume in volumes.values():
            for kind, key, documents in (
                ("configMap", "name", "ConfigMap"),
                ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"),
                ("secret", "secretName", "Secret"),
            ):
                if kind in volume:
                    name = volume[kind][key]
                    assert name in rendering.names(documents) or name in given, f"{pod.owner}: {volume}"


def test_service_accounts_are_there(case: str) -> None:
    rendering = render(case)
    for pod in [*rendering.pods, *prepared_jobs(case)]:
        name = pod.spec.get("serviceAccountName", "default")
        assert name in rendering.names("ServiceAccount") | {"default"} or name in case_text(case), pod.owner


def test_ports_have_one_name_and_probes_ask_ports_that_are_there(case: str) -> None:
    for pod in render(case).pods:
        ports = [port for container in pod.spec["containers"] for port in container.get("ports", [])]
        names = {port["name"] for port in ports}
        assert len(names) == len(ports), pod.owner
        for container in pod.spec["containers"]:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.get(probe, {}).get("httpGet")
                assert asked is None or asked["port"] in names | {port["containerPort"] for port in ports}, pod.owner


def test_no_document_stands_twice_and_each_is_in_its_namespace(case: str) -> None:
    rendering = render(case)
    keys = Counter(
        (one["kind"], one["metadata"].get("namespace", NAMESPACE), one["metadata"]["name"])
        for one in rendering.documents
    )
    assert not [key for key, count in keys.items() if count > 1]
    # Nothing is made for the whole cluster.
    assert not [key for key in keys if key[0].startswith("Cluster") or key[0] in ("Namespace", "PriorityClass")]


def test_addresses_in_variables_are_those_of_services(case: str) -> None:
    rendering = render(case)
    services = {
        f"{one['metadata']['name']}:{port['port']}" for one in rendering.all("Service") for port in one["spec"]["ports"]
    }
    given = case_text(case)
    for pod in [*rendering.pods, *prepared_jobs(case)]:
        for variable in pod.environment:
            if variable["name"] in ADDRESSES:
                address = variable["value"].removeprefix("http://").removesuffix("/api")
                # A pod in another namespace names ours too.
                host, _, port = address.partition(":")
                assert f"{host.removesuffix(f'.{NAMESPACE}').split('.')[0]}:{port}" in services or address in given


def test_who_reports_to_prefect_knows_where_its_ui_is_public(case: str) -> None:
    for pod in [*render(case).pods, *prepared_jobs(case)]:
        told = {one["name"]: one.get("value") for one in pod.environment}
        is_told = case in PUBLIC and "TIMESTEP_PREFECT_API_URL" in told
        assert told.get("TIMESTEP_PREFECT_UI_URL") == ("https://prefect.example.com" if is_told else None), pod.owner


def test_a_model_server_is_named_where_there_is_one(case: str) -> None:
    rendering = render(case)
    told = {one["name"] for pod in [*rendering.pods, *prepared_jobs(case)] for one in pod.environment}
    is_there = case != "no-model-server"
    assert ("timestep-model-server" in rendering.names("Deployment")) is is_there
    assert ("TIMESTEP_MODEL_SERVER_URL" in told) is is_there


def test_jobs_of_the_pools_run_in_their_namespace(case: str) -> None:
    rendering = render(case)
    accounts = {
        (one["metadata"].get("namespace", NAMESPACE), one["metadata"]["name"])
        for one in rendering.all("ServiceAccount")
    }
    for name, made in manifests(case).items():
        account = made["spec"]["template"]["spec"]["serviceAccountName"]
        assert (made["metadata"]["namespace"], account) in accounts, name


def case_text(case: str) -> str:
    """The values file of a case: names of what is there already."""
    return (CASES / f"{case}.yaml").read_text()


def test_pods_say_which_agents_files_they_see(case: str) -> None:
    rendering = render(case)
    for pod in [*rendering.pods, *prepared_jobs(case)]:
        for container in pod.containers:
            named = [one["value"] for one in container.get("env", []) if one["name"] == "TIMESTEP_AGENTS"]
            for path in (path for value in named for path in value.split(":")):
                assert path in _mounted_files(rendering, pod, container), f"{pod.owner}: {path}"


def _mounted_files(rendering: Rendering, pod: Pod, container: dict[str, Any]) -> set[str]:
    """Paths of the files of ConfigMaps that a container sees."""
    maps = {one["name"]: one["configMap"]["name"] for one in pod.spec.get("volumes", []) if "configMap" in one}
    return {
        f"{mount['mountPath'].rstrip('/')}/{file}"
        for mount in container["volumeMounts"]
        if mount["name"] in maps
        for file in _files_of(rendering, maps[mount["name"]])
    }


def _files_of(rendering: Rendering, name: str) -> set[str]:
    # Of the case with a ConfigMap of the user's own, which holds this one.
    there = name in rendering.names("ConfigMap")
    return set(rendering.one("ConfigMap", name)["data"]) if there else {"a.py"} if name == "our-agents" else set()
