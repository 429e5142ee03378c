"""Programs built from the Go module registry, once per machine: k3s, or else Kubernetes' own; CoreDNS; etcd."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from tests.k3s.host import HostError, SetupError

K3S = "v1.34.10-0.20260720191035-931a1fbe1614"
KUBERNETES = "v1.34.4"
COREDNS = "v1.14.7"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "etcd")
K3S_TAGS = "ctrd netcgo osusergo providerless urfave_cli_no_docs sqlite_omit_load_extension apparmor seccomp no_stage"
K3S_TAGS += " no_cri_dockerd"

COREDNS_MAIN = """package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func init() {
	dnsserver.Directives = []string{"ready", "errors", "cache", "kubernetes"}
}

func main() {
	coremain.Run()
}
"""
ETCD_MAIN = """package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
"""


@dataclass(frozen=True)
class Kubernetes:
    """The programs of a cluster: k3s alone, or Kubernetes' components by name."""

    version: str
    programs: dict[str, Path]
    notes: list[str] = field(default_factory=list)

    @property
    def k3s(self) -> Path | None:
        """k3s, where it is that."""
        return self.programs.get("k3s")


def kubernetes() -> Kubernetes:
    """k3s from K3S_BIN, PATH or the Go module registry; else Kubernetes' components.

    Raises:
        HostError: neither can be had.
        SetupError: K3S_BIN names no program.
    """
    named = os.environ.get("K3S_BIN", "k3s")
    if found := shutil.which(named):
        done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        return Kubernetes(next(iter(done.stdout.splitlines()), "k3s"), {"k3s": Path(found)})
    if "K3S_BIN" in os.environ:
        raise SetupError(f"K3S_BIN is '{named}', which is no program.")
    try:
        return Kubernetes(f"k3s {K3S}", {"k3s": _k3s()})
    except HostError as error:
        notes = [f"k3s can't be built here, so these are Kubernetes' own programs: {error}"]
    folder = _cached("kubernetes", KUBERNETES, COMPONENTS, _build_kubernetes)
    return Kubernetes(f"Kubernetes {KUBERNETES}", {name: folder / name for name in COMPONENTS}, notes)


def coredns() -> Path:
    """CoreDNS with the few plugins that a cluster needs."""
    return _cached("coredns", COREDNS, ("coredns",), _build_coredns) / "coredns"


def _cached(name: str, version: str, programs: tuple[str, ...], build: Callable[[Path, str], None]) -> Path:
    folder = platformdirs.user_cache_path("timestep", appauthor=False) / name / version
    if all((folder / program).exists() for program in programs):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"build-{name}-") as made:
        build(Path(made), version)
        for program in programs:
            # By a copy beside it: a build that was cut leaves no half program.
            unfinished = folder / f".{program}.{os.getpid()}"
            shutil.copy(Path(made) / program, unfinished)
            unfinished.rename(folder / program)
    return folder


def _k3s() -> Path:
    return _cached("k3s", K3S, ("k3s",), _build_k3s) / "k3s"


def _build_k3s(folder: Path, version: str) -> None:
    source = _download("github.com/k3s-io/k3s", version)
    copy = folder / "source"
    # The module's own go.mod counts only where it is the main module: its replacements then apply.
    shutil.copytree(source, copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    _go(copy, "build", "-tags", K3S_TAGS, "-o", str(folder / "k3s"), "./cmd/server", cgo=True)


def _build_kubernetes(folder: Path, version: str) -> None:
    source = _download("k8s.io/kubernetes", version)
    # Kubernetes replaces its parts by folders of its own repository; as modules they have versions of their own.
    parts = sorted(set(re.findall(r"^\s*(k8s\.io/\S+) => \./staging", (source / "go.mod").read_text(), re.MULTILINE)))
    replaces = "\n".join(f"\t{part} => {part} v0.{version.split('.', 1)[1]}" for part in parts)
    required = f"go {_go_version(source)}\n\nrequire k8s.io/kubernetes {version}"
    (folder / "go.mod").write_text(f"module cluster\n\n{required}\n\nreplace (\n{replaces}\n)\n")
    commands = [f"k8s.io/kubernetes/cmd/{name}" for name in COMPONENTS if name != "etcd"]
    imports = "\n".join(f'\t_ "{command}"' for command in commands)
    (folder / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\nimport (\n{imports}\n)\n")
    (folder / "etcd").mkdir()
    (folder / "etcd" / "main.go").write_text(ETCD_MAIN)
    _go(folder, "mod", "tidy")
    major, minor = version[1:].split(".")[:2]
    stamp = "k8s.io/component-base/version"
    flags = f"-s -w -X {stamp}.gitVersion={version} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    built = folder / "built"
    _go(folder, "build", "-ldflags", flags, "-o", f"{built}/", *commands, "./etcd")
    shutil.rmtree(folder / "etcd")
    for program in built.iterdir():
        program.rename(folder / program.name)


def _build_coredns(folder: Path, version: str) -> None:
    source = _download("github.com/coredns/coredns", version)
    (folder / "main.go").write_text(COREDNS_MAIN)
    require = f"require github.com/coredns/coredns {version}"
    (folder / "go.mod").write_text(f"module dns\n\ngo {_go_version(source)}\n\n{require}\n")
    _go(folder, "mod", "tidy")
    _go(folder, "build", "-ldflags", "-s -w", "-o", str(folder / "coredns"), ".")


def _go_version(source: Path) -> str:
    found = re.search(r"^go (\S+)", (source / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise HostError(f"{source / 'go.mod'} names no version of Go.")
    return found[1]


def _download(module: str, version: str) -> Path:
    with tempfile.TemporaryDirectory() as nowhere:
        done = _run(Path(nowhere), "mod", "download", "-json", f"{module}@{version}")
    answer = json.loads(done.stdout or "{}")
    if done.returncode != 0 or "Dir" not in answer:
        # Two lines: what was asked, and the registry's own words.
        said = str(answer.get("Error") or done.stderr).strip().splitlines()
        raise HostError(f"{module} {version}: {said[-1].strip() if said else 'the registry said nothing'}")
    print(f"building {module} {version}, once per machine", flush=True)
    return Path(answer["Dir"])


def _go(folder: Path, *arguments: str, cgo: bool = False) -> None:
    trimmed = ("-trimpath",) if arguments[0] == "build" else ()
    done = _run(folder, arguments[0], *trimmed, *arguments[1:], cgo=cgo)
    if done.returncode != 0:
        raise HostError(f"go {arguments[0]} failed: {' '.join(done.stderr.strip().splitlines()[-3:])}")


def _run(folder: Path, *arguments: str, cgo: bool = False) -> subprocess.CompletedProcess[str]:
    if shutil.which("go") is None:
        raise HostError("Go is missing, which builds Kubernetes (https://go.dev/dl), or set K3S_BIN to a k3s.")
    environment = os.environ | {"CGO_ENABLED": str(int(cgo)), "GOWORK": "off"}
    return subprocess.run(["go", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
