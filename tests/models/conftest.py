"""Fixtures of the model room: the real SmolLM2 in process, and the real model server over HTTP."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.local import free_port
from tests.conftest import ROOT, environment
from tests.tiny_model import tiny_model
from timestep.models.engine import LlamaEngine
from timestep.models.files import built_in_file

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return built_in_file(SMOLLM2)


@pytest.fixture(scope="session")
def engine(smollm2: Path) -> LlamaEngine:
    """The real model, in process. Sampling is greedy where a test compares texts."""
    return LlamaEngine(smollm2, 1024, 2)


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def calculator() -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
        "additionalProperties": False,
    }
    function = {"name": "calculator", "description": "Evaluates arithmetic.", "parameters": parameters}
    return {"type": "function", "function": function}


@pytest.fixture(scope="session")
def clock() -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"timezone": {"enum": ["UTC", "Europe/Paris"], "type": "string"}},
        "required": ["timezone"],
    }
    return {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": parameters}}


@pytest.fixture(scope="session")
def calling() -> list[dict[str, Any]]:
    """A conversation after which SmolLM2 itself opens a call of the calculator: it imitates what was done before."""

    def example(a: int, b: int) -> list[dict[str, Any]]:
        function = {"name": "calculator", "arguments": f'{{"expression": "{a}+{b}"}}'}
        return [
            {"role": "user", "content": f"What is {a} plus {b}?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "c", "content": str(a + b)},
            {"role": "assistant", "content": f"It is {a + b}."},
        ]

    return [*example(2, 3), *example(4, 9), *example(11, 6), {"role": "user", "content": "What is 8 plus 5?"}]


@dataclass
class Server:
    """A running server of ours."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def api(self) -> str:
        return f"{self.url}/v1"


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start ``python -m MODULE`` on a free port with these settings; all are stopped at the end."""
    servers: list[Server] = []

    def start(module: str, **settings: str) -> Server:
        port = free_port()
        own = {"HOME": str(tmp_path_factory.mktemp("home")), "PORT": str(port), "MODEL_PORT": str(port), **settings}
        variables = environment() | {f"TIMESTEP_{name}": value for name, value in own.items()}
        process = subprocess.Popen([sys.executable, "-m", module], cwd=ROOT, env=variables)
        servers.append(Server(f"http://127.0.0.1:{port}", process))
        wait_for(lambda: answers(servers[-1].url) or process.poll() is not None, 60)
        assert process.poll() is None, f"{module} ended with {process.returncode}"
        return servers[-1]

    yield start
    for server in servers:
        server.process.terminate()
    for server in servers:
        assert server.process.wait(10) is not None


@pytest.fixture(scope="session")
def model_server(serve: Callable[..., Server]) -> Server:
    """The model server on SmolLM2, without a database."""
    return serve("timestep.models.server", CONTEXT_LENGTH="1024")


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code in (200, 503)
    except httpx.HTTPError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    """Until ``condition`` holds, or the test fails."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.05)
