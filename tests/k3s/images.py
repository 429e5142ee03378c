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

from tests.k3s.host import Unable

ROOT = Path(__file__).resolve().parents[2]
PAUSE = "timestep.test/pause:1"
COREDNS = "timestep.test/coredns:1"
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
        raise Unable(f"cc can't link a static program: {done.stderr.strip().splitlines()[-1]}")
    return of_program(program, PAUSE, folder / "pause.tar")


def of_program(program: Path, name: str, archive: Path) -> Path:
    """An OCI archive of an image named ``name`` that holds ``program`` alone, and runs it."""
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
    named = blob(_MANIFEST, json.dumps(manifest).encode()) | {"annotations": {"io.containerd.image.name": name}}
    with tarfile.open(archive, "w") as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [named]}).encode())
        for digest, content in blobs.items():
            _add(tar, f"blobs/sha256/{digest}", content)
    return archive


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def version() -> str:
    """The project's, which is the image's tag."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
