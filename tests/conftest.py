"""Fixtures of the whole suite: one real service, started by the command that users type."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from deployments.local import free_port
from tests.postgres import database, empty_server, postgres_url, template
from tests.tiny_model import tiny_model
from timestep.agents.record import lease
from timestep.settings import Settings

# Fixtures, of one server for the whole suite.
__all__ = ["database", "empty_server", "postgres_url", "template"]
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Service:
    """A running service and the command line that talks to it."""

    home: Path
    port: int
    prefect_port: int
    agents: Path

    @property
    def prefect_api(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def calls(self) -> list[str]:
        """What the scripted agents really executed, without process ids."""
        log = self.agents.with_name("calls.log")
        return [line.rsplit(" ", 1)[0] for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def dataset(self) -> Path:
        """Training data for the tiny model: 24 short conversations, every third with a tool call."""
        path = self.home / "dataset.jsonl"
        if not path.exists():
            path.write_text("".join(f"{json.dumps(conversation(n))}\n" for n in range(24)))
        return path

    def clear_calls(self) -> None:
        self.agents.with_name("calls.log").unlink(missing_ok=True)

    def run(self, *arguments: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run ``timestep`` with these arguments on this home."""
        command = [sys.executable, "-m", "timestep", *arguments, "--home", str(self.home)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment(), check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}\n{done.stdout}\n{done.stderr}")
        return done

    def json(self, *arguments: str, timeout: float = 300) -> dict[str, Any]:
        """Run ``timestep`` with ``--json`` and parse what it prints."""
        return dict(json.loads(self.run(*arguments, "--json", timeout=timeout).stdout))


def conversation(number: int) -> dict[str, Any]:
    """One line of an OpenAI fine-tuning file."""
    user = {"role": "user", "content": f"What is {number} plus {number}?"}
    if number % 3:
        return {"messages": [user, {"role": "assistant", "content": f"It is {2 * number}."}]}
    function = {"name": "calculator", "arguments": json.dumps({"expression": f"{number}+{number}"})}
    call = {"id": "call_1", "type": "function", "function": function}
    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
    return {
        "messages": [
            user,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": str(2 * number)},
            {"role": "assistant", "content": f"It is {2 * number}."},
        ],
        "tools": [{"type": "function", "function": {"name": "calculator", "parameters": parameters}}],
    }


def environment() -> dict[str, str]:
    """The environment of a child: the checkout importable, the toolchain shared, nobody's own settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TIMESTEP_", "PREFECT_"))}
    # Fewer crashes than by default, so that what crashes for ever is done with soon.
    own = {"TIMESTEP_TOOLCHAIN": str(toolchain_dir()), "TIMESTEP_CRASH_LIMIT": "3"}
    return kept | own | {"PYTHONPATH": str(ROOT)}


def toolchain_dir() -> Path:
    """Built once per machine: the toolchain of the default home."""
    return Path(os.environ.get("TIMESTEP_TOOLCHAIN") or Settings().toolchain_dir)


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """``timestep up --detach`` on an empty home and free ports; stopped at the end of the suite."""
    # A short path: PostgreSQL's socket lies under it and may have at most 107 characters.
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    agents = home / "agents.py"
    shutil.copy(Path(__file__).with_name("agents_file.py"), agents)
    shutil.copy(tiny_model(home), home / "tiny.gguf")
    running = Service(home, free_port(), free_port(), agents)
    try:
        ports = ["--port", str(running.port), "--prefect-port", str(running.prefect_port)]
        running.run("up", "--detach", *ports, "--agents", str(agents), timeout=180)
        yield running
    finally:
        running.run("down", check=False)
        shutil.rmtree(home, ignore_errors=True)


# The folders whose files take longest: begun first, so that none of them is what all wait for at the end.
FIRST = ("chaos", "flows", "ui", "deployments", "server", "training", "storage")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which ``make test`` hands out files, two at a time."""
    ranks = {name: rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.parent.name, len(ranks)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="FOLDER", help="keep what the Prefect UI shows, for the documents")


def _never(code: int) -> NoReturn:
    raise AssertionError(f"a lease ended this process ({code}), and with it every test")


def pytest_configure() -> None:
    """What a flow run's process does, and this one must not."""
    lease.end_process = _never
    _send_no_events()


def _send_no_events() -> None:
    """No events leave this process: Prefect would wait for a server that a test has long stopped."""
    from prefect.events.clients import NullEventsClient
    from prefect.events.worker import EventsWorker

    EventsWorker.set_client_override(NullEventsClient)
