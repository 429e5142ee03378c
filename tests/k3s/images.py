"""Images without a registry: a program alone in an OCI archive, and the service's own image by ``make image``."""

import hashlib
import io
import json
import os
import platform
import subprocess
import tarfile
import tomllib
from pathlib import Path

from tests.k3s.host import HostError, SetupError

ROOT = Path(__file__).resolve().parents[2]
PAUSE = "timestep.test/pause:1"
COREDNS = "timestep.test/coredns:1"
NAME, BASE = "localhost/timestep:test-k3s", "localhost/timestep-base"
PAUSE_C = """#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { (void)number; exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, NULL, WNOHANG) > 0); }
int main(void) {
  signal(SIGTERM, end);
  signal(SIGINT, end);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
"""
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def pause(folder: Path) -> Path:
    """Archive of the image that holds a pod's namespaces."""
    source, program = folder / "pause.c", folder / "pause"
    source.write_text(PAUSE_C)
    done = subprocess.run(["cc", "-Os", "-static", "-o", program, source], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostError(f"cc can't link a static program: {done.stderr.strip().splitlines()[-1]}")
    return of_program(program, folder / "pause.tar")


def of_program(program: Path, archive: Path) -> Path:
    """An OCI archive of an image that holds ``program`` alone, and runs it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        member = tarfile.TarInfo(program.name)
        member.size, member.mode = program.stat().st_size, 0o755
        with program.open("rb") as file:
            tar.addfile(member, file)
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    kept = blob(_LAYER, layer.getvalue())
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = {"architecture": machine, "os": "linux", "config": {"Entrypoint": [f"/{program.name}"]}}
    config["rootfs"] = {"type": "layers", "diff_ids": [kept["digest"]]}
    described = blob(_CONFIG, json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": [kept]}
    listed = blob(_MANIFEST, json.dumps(manifest).encode()) | {"platform": {"architecture": machine, "os": "linux"}}
    with tarfile.open(archive, "w") as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode())
        for digest, content in blobs.items():
            _add(tar, f"blobs/sha256/{digest}", content)
    return archive


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def service(folder: Path) -> Path:
    """OCI archive of the service's image: TIMESTEP_K3S_IMAGE, else built by ``make image``.

    Where no registry can be reached its base is made of Debian's packages. Options of the build's own, such as
    certificates of a proxy, are taken from IMAGE_BUILD_ARGS.

    Raises:
        SetupError: it can't be built.
    """
    if given := os.environ.get("TIMESTEP_K3S_IMAGE"):
        if not Path(given).is_file():
            raise SetupError(f"TIMESTEP_K3S_IMAGE is '{given}', which is no file.")
        return Path(given)
    archive = folder / "timestep.tar"
    base = [] if _do("buildah", "pull", "--quiet", _base()) else [f"BASE={BASE}"]
    if base and not _do("buildah", "inspect", "--type", "image", BASE):
        print("no image registry can be reached: making the base image of Debian's packages", flush=True)
        _must(str(ROOT / "deployments" / "image" / "base.sh"), BASE)
    print("building the image (what was compiled is kept)", flush=True)
    _must("make", "image", "BUILDER=buildah", f"IMAGE={NAME}", *base, f"IMAGE_BUILD_ARGS={_arguments()}")
    _must("buildah", "push", "--quiet", NAME, f"oci-archive:{archive}")
    return archive


def _base() -> str:
    text = (ROOT / "deployments" / "image" / "Containerfile").read_text()
    return next(line.removeprefix("ARG BASE=") for line in text.splitlines() if line.startswith("ARG BASE="))


def _arguments() -> str:
    # The host's network: the build has no other of its own where containers have none.
    return f"--network=host {os.environ.get('IMAGE_BUILD_ARGS', '')}".strip()


def _do(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, env=_environment(), cwd=ROOT, check=False).returncode == 0


def _must(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), cwd=ROOT, check=False)
    if done.returncode != 0:
        raise SetupError(f"{Path(command[0]).name} {command[1]}: {' '.join(done.stderr.strip().splitlines()[-5:])}")


def _environment() -> dict[str, str]:
    # runc knows every kind of cgroups; others that Debian has know none but the newest.
    return {"BUILDAH_ISOLATION": "oci", "BUILDAH_RUNTIME": "runc", **os.environ}


def version() -> str:
    """The project's, which is the image's tag."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
