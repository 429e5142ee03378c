"""The real JavaScript SDK in one Node process for all tests of this folder.

``npm ci`` runs once per lock file, into .cache/javascript; later sessions find it there.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fasteners
import pytest
from agents import set_trace_processors, set_tracing_disabled

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "javascript"


class JavaScript:
    """A Node process that answers a line of JSON with a line of JSON (runner.mjs)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, agents: dict[str, Any], **request: Any) -> dict[str, Any]:
        """Runs the described agents. Raises AssertionError with JavaScript's own error, where there was one."""
        answer = self.ask(agents, **request)
        assert "error" not in answer, answer.get("stack")
        return answer

    def ask(self, agents: dict[str, Any], **request: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"agents": agents, **request}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "Node has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="session")
def sdk() -> Path:
    """A folder with the JavaScript SDK installed and the runner in it."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed: the JavaScript SDK can't run")
    lock = (HERE / "package-lock.json").read_bytes()
    folder = CACHE / hashlib.sha256(lock).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    with fasteners.InterProcessLock(folder.with_suffix(".lock")):
        _install(folder)
    shutil.copy(HERE / "runner.mjs", folder)
    return folder


def _install(folder: Path) -> None:
    """``npm ci``, unless it was done; of two processes of the tests, one does it."""
    if (folder / "installed").exists():
        return
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm ci failed, no registry can be reached? {done.stderr.strip()[-300:]}")
    (folder / "installed").touch()


@pytest.fixture(scope="session")
def javascript(sdk: Path) -> Iterator[JavaScript]:
    environment = {**os.environ, "OPENAI_API_KEY": "none"}
    command = ["node", "runner.mjs"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=sdk, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        yield JavaScript(process)
        assert process.stdin
        process.stdin.close()


@pytest.fixture(autouse=True)
def traces() -> Iterator[None]:
    """Traces are made, and go nowhere."""
    set_trace_processors([])
    set_tracing_disabled(False)  # other test files turn it off for the process
    yield
    set_tracing_disabled(True)
