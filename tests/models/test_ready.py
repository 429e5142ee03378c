"""A model server that loads its model at once: asked while that takes its time, and told to end."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.local import free_port
from tests.conftest import ROOT, environment
from tests.models.conftest import wait_for
from timestep.models.server import EXIT_CONFIG

COMMAND = [sys.executable, "-m", "timestep.models.server"]
KEY = {"TIMESTEP_SERVICE_KEY": "ts-of-the-service"}


@dataclass
class Slow:
    """A file that is given away once it is released."""

    url: str = ""
    asked: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def slow(tiny_file: Path) -> Iterator[Slow]:
    held = Slow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held.asked.set()
            held.released.wait(120)
            with suppress(OSError):
                self.send_response(200)
                self.send_header("content-length", str(tiny_file.stat().st_size))
                self.end_headers()
                self.wfile.write(tiny_file.read_bytes())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    held.url = f"http://127.0.0.1:{server.server_port}/slow.gguf"
    yield held
    held.released.set()
    server.shutdown()
    server.server_close()


def status(url: str) -> int:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code
    return 0


def test_it_is_alive_before_it_is_ready_and_ends_in_the_middle_of_a_load(slow: Slow, tmp_path: Path) -> None:
    variables = {**environment(), **KEY, "TIMESTEP_HOME": str(tmp_path), "TIMESTEP_MODEL": slow.url}
    variables["OMP_NUM_THREADS"] = "1"

    def start() -> tuple[subprocess.Popen[bytes], str]:
        slow.asked.clear()
        port = free_port()
        listens = {"TIMESTEP_MODEL_HOST": "0.0.0.0", "TIMESTEP_MODEL_PORT": str(port)}
        process = subprocess.Popen([*COMMAND, "--preload"], cwd=ROOT, env={**variables, **listens})
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: status(f"{url}/health") == 200 or process.poll() is not None, 120)
        assert slow.asked.wait(60)
        return process, url

    process, url = start()
    try:
        assert (status(f"{url}/ready"), status(f"{url}/health"), status(f"{url}/v1/models")) == (503, 200, 401)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        process.wait(20)
        assert time.monotonic() - begun < 10
    finally:
        process.kill()
    process, url = start()
    try:
        slow.released.set()
        wait_for(lambda: status(f"{url}/ready") == 200, 60)
        assert httpx.get(f"{url}/health", timeout=5).json()["loaded"]
    finally:
        process.terminate()
        process.wait(20)


def test_a_model_that_can_t_be_had_is_said_once_and_waited_for(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "later.gguf"
    variables = {**environment(), "TIMESTEP_HOME": str(tmp_path), "TIMESTEP_MODEL": str(path)}
    command = [*COMMAND, "--port", str(port), "--preload"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=said)
    try:
        wait_for(lambda: status(f"http://127.0.0.1:{port}/ready") == 503, 120)
        time.sleep(5)
        lines = (tmp_path / "said").read_text().splitlines()
        assert [line.partition(":")[0] for line in lines] == ["The model can't be loaded yet"]
    finally:
        process.terminate()
        process.wait(20)


def test_other_machines_need_a_key() -> None:
    variables = {**environment(), "TIMESTEP_MODEL_HOST": "0.0.0.0"}
    done = subprocess.run(COMMAND, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_CONFIG, 1)
    assert "set TIMESTEP_SERVICE_KEY" in done.stderr
