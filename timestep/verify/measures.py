"""The suites that measure: how good a model calls functions, and what a service bears."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from timestep.verify import environments
from timestep.verify.programs import judged
from timestep.verify.results import Result
from timestep.verify.target import Target

CASES = 50
SECONDS = 120
PATIENCE = 120  # seconds in which the steps that run at the end may come to theirs


@dataclass(frozen=True)
class BerkeleySuite:
    """Berkeley function calling. ``limit``: cases, as many of each category."""

    name: str
    about: str
    timeout: float = 4 * 3600

    def run(self, target: Target, cache: Path) -> Result:
        """As :class:`timestep.verify.programs.Suite`."""
        python = environments.python_environment(self.name, cache)
        program = environments.SUITES / "bfcl" / "functions.py"
        with tempfile.TemporaryDirectory(prefix="verify-") as place:
            report = Path(place, "report.json")
            command = [str(python), str(program), "--report", str(report)]
            command += ["--model", target.model, "--limit", str(target.limit or CASES)]
            return judged(self.name, command, report, target, self.timeout)


@dataclass(frozen=True)
class LocustSuite:
    """A load profile of fixed size. ``seconds``: its length."""

    name: str
    about: str

    def run(self, target: Target, cache: Path) -> Result:
        """As :class:`timestep.verify.programs.Suite`."""
        python = environments.python_environment(self.name, cache)
        profile = environments.SUITES / "locust" / "locustfile.py"
        seconds = target.seconds or SECONDS
        with tempfile.TemporaryDirectory(prefix="verify-") as place:
            report = Path(place, "report.json")
            command = [str(python), "-m", "locust", "-f", str(profile), "--headless", "--only-summary"]
            command += ["--host", target.url, "--users", "70", "--spawn-rate", "70", "--run-time", f"{seconds}s"]
            command += ["--stop-timeout", str(PATIENCE), "--exit-code-on-error", "0"]
            command += ["--model", target.model, "--report", str(report)]
            return judged(self.name, command, report, target, seconds + 2 * PATIENCE)
