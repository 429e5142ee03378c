"""The suite that reads the service's own OpenAPI document and sends what it allows, and what it doesn't."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from timestep.verify import environments
from timestep.verify.programs import judged
from timestep.verify.results import Result
from timestep.verify.target import Target

EXAMPLES = 10  # of each operation, beyond those that cover each of its parameters


@dataclass(frozen=True)
class SchemathesisSuite:
    """No 5xx but the documented 501, and every answer as documented. ``limit``: examples of each operation."""

    name: str
    about: str
    timeout: float = 3600

    def run(self, target: Target, cache: Path) -> Result:
        """As :class:`timestep.verify.programs.Suite`."""
        python = environments.python_environment(self.name, cache)
        with tempfile.TemporaryDirectory(prefix="verify-") as place:
            for file in (environments.SUITES / "schemathesis").iterdir():
                shutil.copy(file, place)
            asked = {"model": target.model, "embedding_model": target.embedding_model}
            Path(place, "target.json").write_text(json.dumps(asked))
            report = Path(place, "report.xml")
            command = [str(python.with_name("schemathesis")), "--config-file", "schemathesis.toml", "run"]
            command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(target.limit or EXAMPLES)]
            command += ["--generation-database", "none", "--report", "junit", "--report-junit-path", str(report)]
            command += [f"{target.url}/openapi.json"]
            return judged(self.name, command, report, target, self.timeout)
