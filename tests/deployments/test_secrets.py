"""The Secrets of a cluster: made once, kept, completed, copied, forgotten. The API is a real server on loopback."""

import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_asyncio.config import kube_config

from deployments.secrets import MAKER, main
from tests.conftest import ROOT, environment

PATH = re.compile(r"/api/v1/namespaces/([^/]+)/secrets(?:/([^/?]+))?")
ALL = ("database", "service-key", "prefect-auth", "api-key")


@dataclass
class Cluster:
    """The little of the Kubernetes API that Secrets need: versions, conflicts, permissions."""

    url: str = ""
    namespaces: tuple[str, ...] = ("here", "jobs")
    secrets: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    token: str = "token-of-the-pod"
    asked: list[str] = field(default_factory=list)  # verb and name
    others: list[tuple[tuple[str, str], dict[str, str]]] = field(default_factory=list)  # written before the next write
    lock: threading.Lock = field(default_factory=threading.Lock)
    version: int = 0

    def values(self, name: str, namespace: str = "here") -> dict[str, str]:
        data = self.secrets[namespace, name]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def put(self, place: tuple[str, str], values: dict[str, str], labels: dict[str, str] | None = None) -> None:
        self.version += 1
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        metadata = {"name": place[1], "namespace": place[0], "resourceVersion": str(self.version), "labels": labels}
        self.secrets[place] = {"kind": "Secret", "metadata": metadata, "data": data}

    def answer(self, method: str, path: str, body: dict[str, Any] | None, token: str) -> tuple[int, dict[str, Any]]:
        found = PATH.fullmatch(path)
        assert found is not None, path
        namespace, name = found.groups()
        verb = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
        place = (namespace, name or str((body or {})["metadata"]["name"]))
        self.asked.append(f"{verb} {place[1]}")
        if token != f"Bearer {self.token}":
            return 401, {"message": "Unauthorized"}
        if verb in self.forbidden:
            return 403, {"message": f"the pod cannot {verb} secrets"}
        with self.lock:
            if verb in ("create", "patch") and self.others:
                self.put(*self.others.pop())
            there = self.secrets.get(place)
            if verb == "create":
                if namespace not in self.namespaces:
                    return 404, {"message": f'namespaces "{namespace}" not found'}
                if there is not None:
                    return 409, {"message": "already exists"}
                assert body is not None
                self.put(place, body["stringData"], body["metadata"]["labels"])
                return 201, self.secrets[place]
            if there is None:
                return 404, {"message": "not found"}
            if verb == "patch":
                assert body is not None
                if body["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
                    return 409, {"message": "the object has been modified"}
                self.put(place, {**self.values(place[1], namespace), **body["stringData"]}, there["metadata"]["labels"])
            if verb == "delete":
                del self.secrets[place]
                return 200, {"kind": "Status", "status": "Success"}
            return 200, self.secrets[place]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    held = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, answer = held.answer(self.command, self.path, body, self.headers.get("authorization") or "")
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    held.url = f"http://127.0.0.1:{server.server_port}"
    yield held
    server.shutdown()
    server.server_close()


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def kubeconfig(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
        "users": [{"name": "u", "user": {"token": cluster.token}}],
    }
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return path


@pytest.fixture
def run(kubeconfig: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, names: tuple[str, ...] = ALL) -> Done:
        code = main(["--prefix", "ts", "--namespace", "here", *arguments, *names])
        return Done(code, *capfd.readouterr())

    return run


def test_what_is_missing_is_made_once_and_kept_and_no_value_is_ever_said(cluster: Cluster, run: Run) -> None:
    first = run("--database-host", "ts-database.here")
    assert first.code == 0, first.err
    made = {name: cluster.values(f"ts-{name}") for name in ALL}
    assert {name: set(values) for name, values in made.items()} == {
        "database": {"password", "url"},
        "service-key": {"key"},
        "prefect-auth": {"auth"},
        "api-key": {"key"},
    }
    password = made["database"]["password"]
    assert made["database"]["url"] == f"postgresql://timestep:{password}@ts-database.here:5432/postgres"
    assert made["prefect-auth"]["auth"].startswith("timestep:")
    assert made["api-key"]["key"].startswith("ts-")
    assert made["api-key"] != made["service-key"]
    assert all(len(value) >= 40 for values in made.values() for value in values.values())
    again = run("--database-host", "ts-database.here")
    assert again.code == 0, again.err
    assert {name: cluster.values(f"ts-{name}") for name in ALL} == made
    said = first.out + first.err + again.out + again.err
    assert not [value for values in made.values() for value in values.values() if value in said]
    assert again.out.count("kept.") == 4
    assert {asked.split()[0] for asked in cluster.asked} == {"get", "create"}


def test_a_key_that_is_missing_is_added_and_the_url_follows_the_databases_host(cluster: Cluster, run: Run) -> None:
    cluster.put(("here", "ts-database"), {"password": "p1", "more": "m"})
    assert run(names=("database",)).code == 0
    url = "postgresql://timestep:p1@ts-database:5432/postgres"
    assert cluster.values("ts-database") == {"password": "p1", "more": "m", "url": url}
    assert run("--database-host", "ts-database.here", names=("database",)).code == 0
    url = "postgresql://timestep:p1@ts-database.here:5432/postgres"
    assert cluster.values("ts-database") == {"password": "p1", "more": "m", "url": url}


def test_jobs_get_copies_but_not_the_api_key(cluster: Cluster, run: Run) -> None:
    cluster.put(("jobs", "ts-prefect-auth"), {"auth": "of:yesterday"})
    assert run("--also-namespace", "jobs").code == 0
    for name in ("database", "service-key", "prefect-auth"):
        assert cluster.values(f"ts-{name}", "jobs") == cluster.values(f"ts-{name}")
    assert ("jobs", "ts-api-key") not in cluster.secrets


def test_of_several_at_once_all_end_with_the_first_ones_values(
    cluster: Cluster, kubeconfig: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prefix", "ts", "--namespace", "here", "--also-namespace", "jobs", *ALL]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(main, [arguments] * 4)) == [0] * 4
    assert capfd.readouterr().out.count("made.") == 7
    for name in ("database", "service-key", "prefect-auth"):
        assert cluster.values(f"ts-{name}", "jobs") == cluster.values(f"ts-{name}")


def test_who_was_quicker_counts(cluster: Cluster, run: Run) -> None:
    cluster.others.append((("here", "ts-service-key"), {"key": "theirs"}))  # between the look and the creation
    assert run(names=("service-key",)).code == 0
    assert cluster.values("ts-service-key") == {"key": "theirs"}
    cluster.put(("here", "ts-api-key"), {})
    cluster.others.append((("here", "ts-api-key"), {"key": "theirs too"}))
    assert run(names=("api-key",)).code == 0
    assert cluster.values("ts-api-key") == {"key": "theirs too"}


def test_what_was_made_here_is_forgotten_and_nothing_else(cluster: Cluster, run: Run) -> None:
    assert run("--also-namespace", "jobs").code == 0
    cluster.put(("here", "ts-api-key"), {"key": "by hand"}, {"team": "a"})
    done = run("--also-namespace", "jobs", "--forget")
    assert done.code == 0, done.err
    assert list(cluster.secrets) == [("here", "ts-api-key")]
    assert run("--also-namespace", "jobs", "--forget").code == 0


@pytest.mark.parametrize("verb", ["get", "create", "patch", "delete"])
def test_a_missing_permission_is_named_in_one_line(cluster: Cluster, run: Run, verb: str) -> None:
    cluster.forbidden.add(verb)
    if verb in ("patch", "delete"):
        cluster.put(("here", "ts-database"), {"password": "p"}, dict([MAKER]))
    done = run(*(["--forget"] if verb == "delete" else []), names=("database",))
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"May not {verb} Secret 'ts-database' of namespace 'here'" in done.err
    assert f"the verb '{verb}' on secrets" in done.err


def test_other_refusals_are_one_line_too(cluster: Cluster, run: Run, kubeconfig: Path) -> None:
    done = run("--also-namespace", "nowhere", names=("service-key",))
    assert (done.code, done.err) == (1, "Namespace 'nowhere' is missing. Create it first.\n")
    cluster.token = "another"
    done = run(names=("service-key",))
    assert (done.code, done.err.count("\n"), "does not know this token" in done.err) == (1, 1, True)
    kubeconfig.write_text(kubeconfig.read_text().replace(cluster.url, "http://127.0.0.1:9"))
    done = run(names=("service-key",))
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("The Kubernetes API does not answer: ")
    kubeconfig.unlink()
    done = run(names=("service-key",))
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("No cluster is known here: ")


def test_in_a_cluster_the_pods_own_token_is_used() -> None:
    # There's no such folder here: the line says what is looked for.
    if Path("/var/run/secrets/kubernetes.io").exists():
        pytest.skip("this runs in a cluster")
    command = [sys.executable, "-m", "deployments.secrets", "--prefix", "ts", "--namespace", "here", "api-key"]
    variables = {**environment(), "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "9"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Service token file does not exist" in done.stderr
