"""What `helm test` runs: the pod's own program, against a server that writes down what it is asked."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.charts.rendering import render

KEY = "canary-77a1"
LISTS = ["GET /health", "GET /v1/models", "GET /v1/agents"]
STEP = ["POST /v1/steps", "GET /v1/steps/one"]


class _Server(ThreadingHTTPServer):
    """The API, as far as the program asks it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: list[str] = []
        self.status = "succeeded"  # of its one step


class _Answer(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"id": "one", "status": self.server.status, "output": "Hello."}).encode()
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {KEY}" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read what was asked."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def run(case: str, server: _Server, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """The pod's command with the pod's environment, at this server."""
    (container,) = next(pod for pod in render(case).pods if pod.owner == "Pod/timestep-test").containers
    given = {one["name"]: one.get("value", key) for one in container["env"]}
    assert given["API_URL"] == "http://timestep-api.work.svc:8000"
    environment = os.environ | given | {"API_URL": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, *container["command"][1:], *container["args"]]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("case", "asked"), [("defaults", [*LISTS, *STEP]), ("no-model-server", LISTS)])
def test_a_step_is_run_where_its_model_is_served(case: str, asked: list[str], server: _Server) -> None:
    done = run(case, server)
    assert done.returncode == 0, done.stderr
    assert server.asked == asked


@pytest.mark.parametrize("case", ["defaults", "no-model-server"])
def test_a_refusal_fails_the_test_with_one_line(case: str, server: _Server) -> None:
    done = run(case, server, "another")
    assert done.returncode == 1 and "401" in done.stderr and done.stderr.count("\n") == 1


def test_a_step_that_fails_fails_the_test(server: _Server) -> None:
    server.status = "failed"
    done = run("defaults", server)
    assert done.returncode == 1 and "Step one failed" in done.stderr
