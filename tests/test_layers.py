"""The rooms are layers: each imports only from those below it, so that no change ripples upward."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAYERS = {
    "timestep.cli": 7,
    "timestep.verify": 6,
    "timestep.server": 5,
    "deployments": 5,
    "flows": 4,
    "timestep.steps": 4,
    "timestep.repair": 4,
    "timestep.agents": 3,
    "timestep.runs": 3,
    "timestep.batches": 3,
    "training": 3,
    "timestep.models": 2,
    "timestep.files": 2,
    "timestep.keys": 2,
    "storage": 1,
    "timestep.database": 1,
    "timestep.nesting": 0,
    "timestep.errors": 0,
    "timestep.settings": 0,
}
PACKAGES = ("timestep", "flows", "storage", "training", "deployments")


def room(module: str) -> str | None:
    return next((name for name in LAYERS if module == name or module.startswith(f"{name}.")), None)


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if room(name):
                yield name, path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("name", "path"), list(modules()), ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_a_room_imports_only_rooms_below_it(name: str, path: Path) -> None:
    own = room(name)
    assert own is not None
    for imported in imports(path):
        other = room(imported)
        if other is not None and other != own:
            assert LAYERS[other] < LAYERS[own], f"{name} (layer {LAYERS[own]}) imports {imported}"


def test_no_flow_file_is_named_like_a_package() -> None:
    # Prefect puts the flow file's folder first on sys.path while it loads an entrypoint.
    assert not {path.stem for path in (ROOT / "flows").glob("*.py")} & set(PACKAGES)


def test_only_the_settings_read_the_environment() -> None:
    # The first makes the environment of child processes; the others look for variables of Prefect's and Kubernetes'.
    allowed = {"deployments.environment", "deployments.prefect_server", "deployments.secrets"}
    for name, path in modules():
        if name not in allowed and name != "timestep.settings":
            text = path.read_text()
            assert "os.getenv" not in text and "os.environ[" not in text and "os.environ.get" not in text, name
