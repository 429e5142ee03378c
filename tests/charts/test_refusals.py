"""Values that can't work together, or aren't safe, are refused in one line that says what to do."""

import pytest

from tests.charts.rendering import refusal

PUBLIC = ("ingress.enabled=true", "prefectServer.host=prefect.example.com")
UNSAFE = {
    "no database": (("database.enabled=false",), "database.existingSecret"),
    "two storages": (("storage.existingSecret=a", "storage.existingClaim=b"), "storage.existingClaim"),
    "nothing runs steps": (("warmWorker.enabled=false", "worker.enabled=false"), "Switch one on"),
    "agents without names": (("agents.existingConfigMap=a",), "agents.existingFiles"),
    "agents twice": (
        ("agents.existingConfigMap=a", "agents.existingFiles={a.py}", r"agents.files.b\.py=b"),
        "one of them",
    ),
    "an agents file that is none": ((r"agents.files.read me\.txt=x",), "clerk.py"),
    "no Prefect server": (("prefectServer.enabled=false",), "prefectServer.url"),
    "two Prefect servers": (("prefectServer.url=https://prefect.example.com/api",), "prefectServer.enabled"),
    "a split without Redis": (("prefectServer.split.enabled=true",), "prefectServer.redis.existingSecret"),
    "an open Prefect server on an ingress": (
        (*PUBLIC, "prefectServer.auth.enabled=false"),
        "whoever reaches it could run anything",
    ),
    "an open Prefect server on a gateway": (
        ("gateway.enabled=true", "gateway.parentRefs[0].name=a", PUBLIC[1], "prefectServer.auth.enabled=false"),
        "whoever reaches it could run anything",
    ),
    "an ingress to nothing": (("ingress.enabled=true",), "api.host"),
    "an ingress and a gateway": (
        (PUBLIC[0], "gateway.enabled=true", "gateway.parentRefs[0].name=a", "api.host=api.example.com"),
        "ingress.enabled and gateway.enabled are both on",
    ),
    "one host for two parts on an ingress": (
        (*PUBLIC, "api.host=prefect.example.com"),
        "are both 'prefect.example.com'",
    ),
    "one host for two parts on a gateway": (
        ("gateway.enabled=true", "gateway.parentRefs[0].name=a", PUBLIC[1], "api.host=prefect.example.com"),
        "are both 'prefect.example.com'",
    ),
    "routes of no gateway": (("gateway.enabled=true", "api.host=api.example.com"), "gateway.parentRefs"),
    "a volume in two namespaces": (("worker.job.namespace=jobs",), "storage.existingSecret"),
    "a GPU step without a limit": (
        ("training.gpu.count=1", "training.resources.limits=null"),
        "training.resources.limits.memory",
    ),
    "a scaler that can't scale": (
        ("api.autoscaling.enabled=true", "api.autoscaling.minReplicas=9"),
        "minReplicas 9 is more than maxReplicas 6",
    ),
    "a percentage of nothing": (
        ("api.autoscaling.enabled=true", "api.resources.requests=null"),
        "api.resources.requests.cpu",
    ),
    "a Prefect server of one's own without its login": (
        ("prefectServer.enabled=false", "prefectServer.url=https://prefect.example.com/api"),
        "prefectServer.auth.existingSecret",
    ),
}


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_values_are_refused_in_one_line(name: str, major: int) -> None:
    given, said = UNSAFE[name]
    message = refusal(major, *(word for value in given for word in ("--set", value)))
    (line,) = [line for line in message.splitlines() if line and not line.startswith("Use --debug")]
    assert said in line and "validate.yaml" in line
    # A sentence, after helm's own words.
    assert line.endswith((".", "!"))


@pytest.mark.parametrize("unset", ["prefectServer.auth.enabled=false"])
def test_within_the_cluster_an_open_prefect_server_is_ones_own_choice(unset: str) -> None:
    with pytest.raises(AssertionError, match="were taken"):
        refusal(4, "--set", unset)
