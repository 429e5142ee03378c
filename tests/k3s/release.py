"""The chart, installed in the cluster: helm, the service's API as its users reach it, and its pods, to be killed."""

import asyncio
import base64
import json
import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import httpx
import yaml

from tests.charts.tools import kubectl
from tests.k3s.cluster import Cluster
from tests.k3s.images import ROOT
from tests.k3s.machine import ClusterError

NAME = NAMESPACE = "timestep"
CHART = ROOT / "charts" / "timestep"
DOCUMENT = ROOT / "docs" / "kubernetes.md"
SECONDS = 900  # of helm's --timeout
ENDED = ("succeeded", "failed", "cancelled")
COMPONENT = "app.kubernetes.io/component"
FLOW_RUN = "prefect.io/flow-run-id"


@dataclass
class Release:
    """The release ``timestep`` in a namespace of its own, where pods must keep to the standard *restricted*."""

    cluster: Cluster
    helm: Path
    values: dict[str, Any] = field(default_factory=dict)  # of the next revision
    database_url: str = ""  # of one that is elsewhere
    _revisions: list[dict[str, Any]] = field(default_factory=list)
    _volumes: dict[str, Path] = field(default_factory=dict)

    def make_namespace(self) -> None:
        """As restricted as Kubernetes knows it."""
        labels = {f"pod-security.kubernetes.io/{how}": "restricted" for how in ("enforce", "warn", "audit")}
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        self.cluster.apply([document])

    def install(self) -> None:
        self._revise("install")

    def upgrade(self, **values: Any) -> None:
        """With more values than before, which stay for later upgrades."""
        self.values = self.values | values
        self._revise("upgrade")

    def rollback(self, revision: int) -> None:
        self._helm("rollback", NAME, str(revision), "--wait")
        self.values = self._revisions[revision - 1]

    def uninstall(self) -> None:
        self._helm("uninstall", NAME, "--wait")

    def test(self) -> None:
        """The chart's own tests."""
        self._helm("test", NAME)

    def documented(self, heading: str, language: str = "sh") -> list[str]:
        """The shell commands, or other code, that the document of clusters gives under a heading."""
        section = DOCUMENT.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
        return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)

    def shell(self, commands: str) -> None:
        """Run them as a reader would, beside the chart and the values. ClusterError: one of them failed."""
        self._write_values()
        place = self.cluster.folder
        programs = place / "programs"
        programs.mkdir(exist_ok=True)
        for name, program in (("kubectl", kubectl()), ("helm", self.helm), ("../charts", CHART.parent)):
            link = programs / name
            link.unlink(missing_ok=True)
            link.symlink_to(program)
        there = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "KUBECONFIG": str(self.cluster.kubeconfig),
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=place,
            capture_output=True,
            text=True,
            env=os.environ | there | self._homes(),
            check=False,
        )
        if done.returncode != 0:
            raise ClusterError(f"{done.stderr.strip()[-500:]} {self.trouble()}".strip())

    def remove_volumes(self) -> None:
        """The claims that an uninstall keeps; the next ones get other volumes, which are empty."""
        self.kubectl("delete", "persistentvolumeclaims", "--all")
        self._volumes.clear()

    def _revise(self, how: str) -> None:
        self._revisions.append(self.values)
        self._helm(how, NAME, str(CHART), "--wait", "--values", str(self._write_values()))

    def _write_values(self) -> Path:
        path = self.cluster.folder / "values.yaml"
        path.write_text(yaml.safe_dump(self.values))
        return path

    def _helm(self, *arguments: str) -> str:
        where = ("--namespace", NAMESPACE, "--kubeconfig", str(self.cluster.kubeconfig), "--timeout", f"{SECONDS}s")
        done = subprocess.run(
            [str(self.helm), *arguments, *where],
            capture_output=True,
            text=True,
            env=os.environ | self._homes(),
            check=False,
        )
        if done.returncode != 0:
            raise ClusterError(f"helm {arguments[0]}: {done.stderr.strip()[-500:]} {self.trouble()}".strip())
        return done.stdout

    def _homes(self) -> dict[str, str]:
        return {f"HELM_{name}_HOME": str(self.cluster.folder / "helm") for name in ("CACHE", "CONFIG", "DATA")}

    def trouble(self) -> str:
        """Pods that aren't well, with the end of what they say."""
        said: list[str] = []
        try:
            pods = self.get("pods")
        except ClusterError as error:
            return f"(no pods can be listed: {error})"
        for pod in pods:
            status = pod["status"]
            states = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
            for state in states:
                ended = state["state"].get("terminated") or state.get("lastState", {}).get("terminated") or {}
                if state["ready"] or (ended and ended.get("exitCode") == 0):
                    continue
                waiting = state["state"].get("waiting", {})
                log = ""
                with suppress(ClusterError):
                    log = self.kubectl("logs", pod["metadata"]["name"], "-c", state["name"], "--tail=4")
                why = waiting.get("message") or waiting.get("reason") or ended.get("reason") or "not ready"
                said.append(f"{pod['metadata']['name']}/{state['name']}: {why[:300]} {log.strip()[-400:]}")
        return " || ".join(said)

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, "--namespace", NAMESPACE)

    def get(self, kind: str, *what: str) -> list[dict[str, Any]]:
        return self.cluster.get(kind, *what, namespace=NAMESPACE)

    def secret(self, name: str, key: str) -> str:
        """What a Secret of the release holds."""
        (found,) = self.get("secret", f"{NAME}-{name}")
        return base64.b64decode(found["data"][key]).decode()

    def address(self, service: str) -> str:
        """host:port of a Service, by its own address."""
        (found,) = self.get("service", f"{NAME}-{service}")
        return f"{found['spec']['clusterIP']}:{found['spec']['ports'][0]['port']}"

    def volume(self, name: str) -> Path:
        """The folder behind a claim whose name holds ``name``: the same for as long as the claim is there."""
        if name in self._volumes:
            return self._volumes[name]
        (claim,) = [one for one in self.get("persistentvolumeclaims") if name in one["metadata"]["name"]]
        (volume,) = self.cluster.get("persistentvolume", claim["spec"]["volumeName"])
        self._volumes[name] = Path(volume["spec"]["local"]["path"])
        return self._volumes[name]

    def pods(self, labels: str) -> list[dict[str, Any]]:
        """Pods that run, by their labels."""
        found = self.get("pods", f"--selector={labels}", "--field-selector=status.phase=Running")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def containers(self, labels: str) -> dict[str, list[str]]:
        """The containers that run in pods with these labels, by their machine."""
        found: dict[str, list[str]] = {}
        for pod in self.pods(labels):
            for state in pod["status"].get("containerStatuses", ()):
                if "running" in state["state"]:
                    container = state["containerID"].removeprefix("containerd://")
                    found.setdefault(pod["spec"]["nodeName"], []).append(container)
        return found

    def kill(self, containers: dict[str, list[str]]) -> float:
        """kill -9 of containers' first processes, with whom all of a container dies; the moment."""
        if not containers:
            raise ClusterError("there is nothing to kill.")
        at = time.time()
        for machine, ids in containers.items():
            self.cluster.machines[machine].kill(ids)
        return at

    def settled(self) -> None:
        """Wait until every pod that is to be ready is."""

        def ready() -> bool:
            sets = [*self.get("deployments"), *self.get("statefulsets")]
            return all(one["status"].get("readyReplicas", 0) >= one["spec"]["replicas"] for one in sets)

        self.cluster.wait("ready pods", ready, 300)

    def fetch(self, query: str, *arguments: object, login: str = "") -> list[asyncpg.Record]:
        """Rows of the service's database; ``login`` is another URL than today's."""

        async def ask() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(login or self.database_login(), database="timestep")
            try:
                return list(await connection.fetch(query, *arguments))
            finally:
                await connection.close()

        return asyncio.run(ask())

    def database_login(self) -> str:
        """The URL of the database, as it is reached from here."""
        if self.database_url:
            return self.database_url
        return f"postgresql://timestep:{self.secret('database', 'password')}@{self.address('database')}/postgres"

    def prefect(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        """What Prefect's API answers."""
        user, password = self.secret("prefect-auth", "auth").split(":", 1)
        url = f"http://{self.address('prefect-server')}/api/{path}"
        answer = httpx.request(method, url, json=body, auth=(user, password), timeout=30, trust_env=False)
        answer.raise_for_status()
        return answer.json() if answer.content else None


class Service:
    """The HTTP API with its first key; a request is sent again for as long as nobody answers."""

    def __init__(self, release: Release) -> None:
        self._client = httpx.Client(
            base_url=f"http://{release.address('api')}",
            headers={"Authorization": f"Bearer {release.secret('api-key', 'key')}"},
            # While a Service has no pod, an attempt to connect may get no answer at all.
            timeout=httpx.Timeout(30, connect=3),
            trust_env=False,
        )

    def request(self, method: str, path: str, *, seconds: float = 120, **sent: Any) -> dict[str, Any]:
        """The answer's JSON. ClusterError: no answer within ``seconds``, or a refusal."""
        end = time.monotonic() + seconds
        while True:
            try:
                answer = self._client.request(method, path, **sent)
                if answer.status_code < 500:
                    break
                reason = answer.text[:200]
            except httpx.HTTPError as error:
                reason = repr(error)
            if time.monotonic() > end:
                raise ClusterError(f"{method} {path}: {reason}")
            time.sleep(0.1)
        if not answer.is_success:
            raise ClusterError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return dict(answer.json())

    def start(self, agent: str, key: str, **what: Any) -> str:
        """Start a step, once however often it is sent; its id."""
        body = {"agent": agent, **({"input": key} if "mode" not in what else {}), **what}
        return str(self.request("POST", "/v1/steps", json=body, headers={"Idempotency-Key": key})["id"])

    def step(self, step: str) -> dict[str, Any]:
        return self.request("GET", f"/v1/steps/{step}")

    def reaches(self, step: str, *statuses: str, seconds: float = 180) -> dict[str, Any]:
        """The step once it has one of these statuses. ClusterError: it has ended otherwise, or the time is over."""
        end = time.monotonic() + seconds
        while (view := self.step(step))["status"] not in statuses:
            if view["status"] in ENDED or time.monotonic() > end:
                told = json.dumps({name: view.get(name) for name in ("status", "state", "attempt", "error")})
                raise ClusterError(f"step {step} isn't {' or '.join(statuses)}: {told}")
            time.sleep(0.05)
        return view

    def close(self) -> None:
        self._client.close()
