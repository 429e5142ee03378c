"""Runs a suite's program in its environment and reads its report. Knows no suite by name."""

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

from timestep.errors import UsageError
from timestep.verify import environments, junit
from timestep.verify.results import Check, Result, broken
from timestep.verify.target import Target

SHOWN = 800  # characters of what a program that failed has said last


class Suite(Protocol):
    """A suite; ``about`` in one line what it is."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    def run(self, target: Target, cache: Path) -> Result:
        """Judge the target; environments lie in ``cache``. UsageError: its environment can't be made."""
        ...


def run(suite: Suite, target: Target, cache: Path) -> Result:
    """What comes of the suite; one whose environment can't be made has failed, and the others go on."""
    try:
        return suite.run(target, cache)
    except UsageError as error:
        return broken(suite.name, str(error))


@dataclass(frozen=True)
class PytestSuite:
    """A folder of tests, run by pytest."""

    name: str
    about: str
    folder: str
    timeout: float = 1200

    def run(self, target: Target, cache: Path) -> Result:
        """As :class:`Suite`."""
        python = environments.python_environment(self.name, cache)
        folder = environments.SUITES / self.folder
        with tempfile.TemporaryDirectory(prefix="verify-") as place:
            report = Path(place, "report.xml")
            command = [str(python), "-m", "pytest", str(folder), "--rootdir", str(folder), "-q", "--tb=short"]
            command += ["-p", "no:cacheprovider", "--junitxml", str(report)]
            command += ["--model", target.model, "--embedding-model", target.embedding_model]
            return judged(self.name, command, report, target, self.timeout)


@dataclass(frozen=True)
class NodeSuite:
    """A folder of tests, run by Node."""

    name: str
    about: str
    folder: str
    timeout: float = 1200

    def run(self, target: Target, cache: Path) -> Result:
        """As :class:`Suite`."""
        folder = environments.node_environment(self.folder, cache)
        with tempfile.TemporaryDirectory(prefix="verify-") as place:
            report = Path(place, "report.xml")
            command = ["node", "--test", "--test-reporter=junit", f"--test-reporter-destination={report}"]
            command += [str(file) for file in sorted(folder.glob("*.test.mjs"))]
            return judged(self.name, command, report, target, self.timeout)


def judged(suite: str, command: Sequence[str], report: Path, target: Target, timeout: float) -> Result:
    """Run the command; its checks and figures as its report says (``.xml``: JUnit, ``.json``: ours).

    A program that ended otherwise than its report tells, or has passed nothing, has failed, whatever else it says.
    """
    started = time.monotonic()
    code, said = _run(command, report.parent, target, timeout)
    try:
        checks, figures = _read(report)
    except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError):
        return broken(suite, said[-SHOWN:])
    if (why := _unexplained(code, checks, timeout)) is not None:
        checks = [*checks, *broken(suite, f"{why} {said[-SHOWN:]}".strip()).checks]
    return Result(suite, checks, time.monotonic() - started, figures)


def _run(command: Sequence[str], folder: Path, target: Target, timeout: float) -> tuple[int | None, str]:
    """The program's exit code, None where it ran too long, and what it said."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environments.variables(target),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return None, (late.stdout or b"").decode(errors="replace").strip()
    return done.returncode, done.stdout.decode(errors="replace").strip()


def _unexplained(code: int | None, checks: list[Check], timeout: float) -> str | None:
    """Why the report isn't the whole story; None where it is."""
    outcomes = {check.outcome for check in checks}
    if code is None:
        return f"It ran longer than {timeout:.0f} s."
    if code != 0 and not (code == 1 and "failed" in outcomes):  # 1: a check has failed, as all of the programs say it
        return f"It ended with exit code {code}, which its report doesn't explain."
    if not checks:
        return "It has checked nothing."
    return None if "passed" in outcomes else "Not one check has passed."


def _read(report: Path) -> tuple[list[Check], dict[str, Any]]:
    if report.suffix == ".xml":
        return junit.read(report), {}
    written = json.loads(report.read_text())
    return [Check(**check) for check in written["checks"]], dict(written.get("figures", {}))
