"""A Prefect server as a cluster has it, and an HTTP server in the place of the Kubernetes API."""

import copy
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_WORKER_QUERY_SECONDS,
    temporary_settings,
)
from prefect_kubernetes import KubernetesWorker

from deployments.environment import prefect_environment
from deployments.local import free_port
from deployments.prefect_server import server_environment
from tests.conftest import environment
from tests.deployments.conftest import START_SECONDS, wait_for
from timestep.database.engine import Database
from timestep.settings import Settings

AUTH = "timestep:not-a-default"
TRAINING_POOL = "timestep-training"


class Cluster:
    """Settings of the pods, and their Prefect server."""

    def __init__(self, home: Path, database_url: str) -> None:
        self.settings = Settings(
            home=home,
            database_url=database_url,
            prefect_port=free_port(),
            prefect_auth=AUTH,
            training_pool=TRAINING_POOL,
        )
        self.register_folder = home / "register"

    def pod_environment(self, **variables: str) -> dict[str, str]:
        """What the chart sets, and nothing of Prefect's."""
        return environment() | self.settings.environment() | variables

    def pod(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.pod", *arguments],
            env=self.pod_environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @contextmanager
    def prefect_settings(self) -> Iterator[None]:
        values = {
            PREFECT_API_URL: self.settings.prefect_api,
            PREFECT_API_AUTH_STRING: AUTH,
            PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
            PREFECT_WORKER_QUERY_SECONDS: 0.2,
        }
        with temporary_settings(values):
            yield

    @asynccontextmanager
    async def prefect(self) -> AsyncIterator[PrefectClient]:
        with self.prefect_settings():
            async with get_client() as client:
                yield client

    @contextmanager
    def served(self) -> Iterator[None]:
        """With a Prefect server that asks for the key."""
        variables = {
            **self.pod_environment(),
            **prefect_environment(self.settings),
            **server_environment(self.settings, Database(str(self.settings.database_url)).prefect_url),
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
        }
        log = self.settings.home / "prefect.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "deployments.prefect_server"], env=variables, stdout=output, stderr=output
            )
        try:
            wait_for(lambda: process.poll() is not None or self._is_healthy(), START_SECONDS)
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.kill()
            process.wait()

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.settings.prefect_api}/health", trust_env=False).is_success
        except httpx.HTTPError:
            return False


def job_template(image: str) -> dict[str, Any]:
    """As the chart makes one: secrets by reference in the manifest's environment, the image's entry as command."""
    template = copy.deepcopy(KubernetesWorker.get_default_base_job_template())
    container = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    secret = {"secretKeyRef": {"name": "timestep-prefect-auth", "key": "auth"}}
    container["env"] = [
        {"name": "TIMESTEP_PREFECT_AUTH", "valueFrom": secret},
        {"name": "TIMESTEP_HOME", "value": "/var/lib/timestep"},
        {"name": "PREFECT_LOGGING_LEVEL", "value": "DEBUG"},
    ]
    template["variables"]["properties"]["command"]["default"] = "job"
    template["variables"]["properties"]["image"]["default"] = image
    template["variables"]["properties"]["namespace"]["default"] = "flows"
    return template


def write_register_folder(folder: Path, schedules: dict[str, Any] | None = None, image: str = "timestep:1") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "base-job-template.json").write_text(json.dumps(job_template(image)))
    (folder / "training-job-template.json").write_text(json.dumps(job_template("timestep:gpu")))
    (folder / "schedules.json").write_text(json.dumps(schedules or {}))


class Kubernetes:
    """The part of the Kubernetes API that makes, lists and deletes jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                job["metadata"] |= {"name": job["metadata"]["generateName"] + uuid4().hex[:5], "uid": str(uuid4())}
                job["metadata"]["namespace"] = urlsplit(self.path).path.split("/")[5]
                job["status"] = {"active": 1, "ready": 0}
                api.jobs[job["metadata"]["name"]] = job
                self._answer(201, job)

            def do_GET(self) -> None:
                name, _, value = parse_qs(urlsplit(self.path).query)["labelSelector"][0].partition("=")
                found = [job for job in api.jobs.values() if job["metadata"]["labels"].get(name) == value]
                self._answer(200, {"apiVersion": "batch/v1", "kind": "JobList", "metadata": {}, "items": found})

            def do_DELETE(self) -> None:
                del api.jobs[urlsplit(self.path).path.rpartition("/")[2]]
                self._answer(200, {"kind": "Status", "status": "Success"})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @contextmanager
    def served(self, folder: Path) -> Iterator[Path]:
        """With the API on a port of this machine; gives the file that names it to clients."""
        thread = threading.Thread(target=self.server.serve_forever, args=[0.05])
        thread.start()
        address = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        config = folder / "kubeconfig"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [address],
                    "contexts": [context],
                    "users": [{"name": "u", "user": {}}],
                }
            )
        )
        try:
            yield config
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    return dict(job["spec"]["template"]["spec"]["containers"][0])


def end(process: subprocess.Popen[str]) -> str:
    """End a process that may have ended; what it said."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.communicate(timeout=30)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]
