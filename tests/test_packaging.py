"""The wheel carries everything that runs, and nothing that doesn't."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT


def test_wheel_holds_all_packages_and_their_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=180)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    packages = ("timestep/", "flows/", "storage/", "training/", "deployments/")
    expected = {name for name in tracked if name.startswith(packages)} | {"deployments/prefect.yaml"}
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
