"""What the image's build says twice: in the Containerfile, and where the rest of the project has it."""

import re
import tomllib
from pathlib import Path

import pytest

from training import toolchain

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


def test_the_tools_are_built_of_all_that_their_building_imports(containerfile: str) -> None:
    """Of our files, those that are copied before the tools are built."""
    stage = containerfile.split(" AS tools\n")[1].split("FROM ")[0]
    copied = {word for line in re.findall(r"^COPY (.*) ", stage, re.M) for word in line.split()}
    imported = re.findall(r"^from ((?:training|timestep)\.\w+) import", Path(toolchain.__file__).read_text(), re.M)
    wanted = {name.replace(".", "/") for name in imported}
    assert {path for path in wanted if not {path, f"{path}.py"} & copied} == set()


def test_the_last_stage_is_without_a_compiler_and_not_root(containerfile: str) -> None:
    last = containerfile.rsplit("\nFROM ", 1)[1]
    assert "build-essential" in containerfile
    assert "build-essential" not in last
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert re.search(r'^ENTRYPOINT \["/usr/bin/tini", "--", "python", "-m", "deployments.pod"\]$', last, re.M)
