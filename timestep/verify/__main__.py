"""``make verify``: a service on an empty home with the scripted model, every suite against it, and its end.

``python -m timestep.verify [--model M] [options of timestep verify]``; with a real model the service serves that one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deployments.local import free_port
from timestep.models.files import SCRIPTED
from timestep.settings import Settings


def main(arguments: list[str]) -> int:
    """The exit code of the suites."""
    # A short path: PostgreSQL's socket lies under it and may have at most 107 characters.
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    model = arguments[arguments.index("--model") + 1] if "--model" in arguments else SCRIPTED.name
    ports = ["--port", str(free_port()), "--prefect-port", str(free_port())]
    try:
        started = _timestep(home, "up", "--detach", *ports, "--model", model)
        return started or _timestep(home, "verify", *arguments)
    finally:
        _timestep(home, "down")
        shutil.rmtree(home, ignore_errors=True)


def _timestep(home: Path, *arguments: str) -> int:
    # The trainer is built once per machine, not once per home.
    environment = os.environ | {"TIMESTEP_TOOLCHAIN": str(Settings().toolchain_dir)}
    command = [sys.executable, "-m", "timestep", *arguments, "--home", str(home)]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
