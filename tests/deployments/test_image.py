"""What the image's build says twice: in the Containerfile, and where the rest of the project has it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "deployments" / "image"
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
    "packages"
]


@pytest.fixture(scope="module")
def containerfile() -> str:
    return (IMAGE / "Containerfile").read_text()


def test_every_package_is_sent_to_the_builder_installed_and_kept(containerfile: str) -> None:
    sent = {line[1:] for line in (IMAGE / "Containerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {name for name, to in re.findall(r"^COPY (\w+) (\w+)$", containerfile, re.M) if name == to}
    kept = re.search(r"for name in ([\w ]+) 'timestep-\*\.dist-info'", containerfile)
    assert kept is not None
    assert set(PACKAGES) == copied == set(kept[1].split())
    assert copied < sent


def test_the_tools_are_built_of_all_that_their_building_imports(containerfile: str, tmp_path: Path) -> None:
    """Of our files, those that are copied before the tools are built."""
    stage = containerfile.split(" AS tools\n")[1].split("FROM ")[0]
    copied = [word for line in re.findall(r"^COPY (.*) ", stage, re.M) for word in line.split()]
    for name in copied:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    script = (IMAGE / "toolchain.py").read_text()
    imports = "\n".join(re.findall(r"^from (?:timestep|training).*", script, re.M))
    command = [sys.executable, "-c", imports]
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert imports and done.returncode == 0, done.stderr


def test_the_last_stage_is_without_a_compiler_and_not_root(containerfile: str) -> None:
    last = containerfile.rsplit("\nFROM ", 1)[1]
    assert "build-essential" in containerfile
    assert "build-essential" not in last
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert re.search(r'^ENTRYPOINT \["/usr/bin/tini", "--", "python", "-m", "deployments.pod"\]$', last, re.M)
