"""An environment for each suite, made by uv from its lock file: what the suites need doesn't resolve together.

An environment lies in the cache under its lock file's checksum, so a second run installs nothing and needs no network.
"""

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from timestep.errors import UsageError
from timestep.verify.target import Target

REQUIREMENTS = Path(__file__).with_name("requirements")
SUITES = Path(__file__).with_name("suites")
# A user's own must not leak into a suite: it would find our packages, or ask another server.
_DROPPED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "OPENAI_", "TIMESTEP_", "PREFECT_", "LANGSMITH_", "LANGCHAIN_")


def find_uv() -> str:
    """The uv program. UsageError: there is none."""
    try:
        return str(importlib.import_module("uv").find_uv_bin())
    except (ImportError, FileNotFoundError):
        pass
    own = Path(__file__).parents[2] / ".uv" / "bin" / "uv"  # of a checkout
    found = shutil.which("uv") or (str(own) if own.exists() else None)
    if found is None:
        raise UsageError("The suites' environments are made by uv, and there is none. Install it: pip install uv")
    return found


def python_environment(name: str, cache: Path) -> Path:
    """The Python of suite ``name``'s environment, installed now if it isn't yet. UsageError: it can't be."""
    requirements = REQUIREMENTS / f"{name}.txt"
    folder = cache / f"{name}-{_checksum(requirements, sys.version)}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = find_uv()
        _install([uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(folder)], name)
        # 'sync' installs what the lock file says and resolves nothing.
        _install([uv, "pip", "sync", "--quiet", "--python", str(python), str(requirements)], name)
        (folder / "installed").touch()
    return python


def node_environment(name: str, cache: Path) -> Path:
    """A folder with the files of suite ``name`` and its npm packages beside them. UsageError: it can't be made."""
    source = SUITES / name
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        raise UsageError(f"Suite '{name}' needs Node.js with npm, and there is none on the PATH.")
    folder = cache / f"{name}-{_checksum(source / 'package-lock.json')}"
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(source / file, folder)
        _install([npm, "ci", "--no-audit", "--no-fund", "--prefix", str(folder)], name)
        (folder / "installed").touch()
    for program in source.glob("*.mjs"):  # newer than the packages, perhaps
        shutil.copy(program, folder)
    return folder


def variables(target: Target) -> dict[str, str]:
    """Of a suite's process: the official clients find the service and the key there, and no process list shows it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    loopback = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return {
        **kept,
        **loopback,
        "OPENAI_API_KEY": target.api_key,
        "OPENAI_BASE_URL": target.api,
        "VERIFY_MODEL": target.model,
        "VERIFY_EMBEDDING_MODEL": target.embedding_model,
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
    }


def _install(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines()
        raise UsageError(f"The environment of suite '{name}' can't be made: {why[-1] if why else command[0]}")


def _checksum(path: Path, *more: str) -> str:
    return hashlib.sha256(path.read_bytes() + "".join(more).encode()).hexdigest()[:12]
