"""What the host must have for a cluster: Linux, root, namespaces, cgroups, a container runtime. Knows no Kubernetes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Programs and the Debian packages that have them.
PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
    "unshare": "util-linux",
    "cc": "gcc",
}
# Where distributions put the plugins of containernetworking-plugins.
PLUGINS = tuple(map(Path, ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")))
NEEDED_PLUGINS = ("bridge", "host-local", "portmap", "loopback")
CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids")
# What a kubelet sets for the whole machine, and what is put back after it.
SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
)


class HostError(Exception):
    """The host can't run the cluster; the message says why, in one line."""


class SetupError(Exception):
    """The host could run the cluster, but what was to run in it can't be had: a failure, in one line."""


def prepare(programs: dict[str, str]) -> None:
    """Have what a cluster needs, and ``programs`` (each with its package); on Debian what is missing is installed.

    Raises:
        HostError: there is no way.
    """
    if sys.platform != "linux":
        raise HostError("containers need Linux.")
    if os.geteuid() != 0:
        raise HostError("a cluster needs root: namespaces, mounts, cgroups.")
    _install(PROGRAMS | programs)
    tried = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            "mount -t tmpfs none /run && ip link add br0 type bridge && ip link add pair type veth",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode != 0:
        raise HostError(f"no namespaces of its own for the cluster: {_last_line(tried.stderr)}")
    Cgroup("timestep-probe").probe()


def plugins() -> Path:
    """Folder of the network plugins."""
    return next(folder for folder in PLUGINS if all((folder / name).exists() for name in NEEDED_PLUGINS))


def _install(programs: dict[str, str]) -> None:
    missing = {package for name, package in programs.items() if shutil.which(name) is None}
    if not any(all((folder / name).exists() for name in NEEDED_PLUGINS) for folder in PLUGINS):
        missing.add("containernetworking-plugins")
    if not missing:
        return
    names = " ".join(sorted(missing))
    if shutil.which("apt-get") is None:
        raise HostError(f"these packages (by their names in Debian) are missing: {names}.")
    print(f"installing {names}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *sorted(missing)]):
        done = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            raise HostError(f"apt-get can't install {names}: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "it gave no reason")


class Cgroup:
    """A group of processes that the kubelet keeps its pods in, in each hierarchy that there is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.unified = (CGROUPS / "cgroup.controllers").exists()

    @property
    def folders(self) -> list[Path]:
        """The group's folder in each hierarchy."""
        if self.unified:
            return [CGROUPS / self.name]
        return [folder / self.name for folder in sorted(CGROUPS.iterdir()) if (folder / "cgroup.procs").exists()]

    def probe(self) -> None:
        """HostError: no such group can be made, or a controller is missing."""
        there = {folder.parent.name for folder in self.folders}
        if self.unified:
            there = {"cpuacct", *(CGROUPS / "cgroup.controllers").read_text().split()}
        if missing := set(CONTROLLERS) - there:
            raise HostError(f"the host has no cgroup controller {', '.join(sorted(missing))}.")
        try:
            self.create()
            self.remove()
        except OSError as error:
            raise HostError(f"the host's cgroups can't be written: {error}.") from None

    def create(self) -> None:
        """Make it."""
        if self.unified:
            for folder in (CGROUPS, CGROUPS / self.name):
                folder.mkdir(exist_ok=True)
                (folder / "cgroup.subtree_control").write_text(
                    " ".join(f"+{name}" for name in CONTROLLERS if name != "cpuacct")
                )
        for folder in self.folders:
            folder.mkdir(exist_ok=True)
            # A group of cpuset takes no process before it has cores and memory.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not self.unified and (folder / file).exists():
                    (folder / file).write_text((folder.parent / file).read_text())

    def remove(self) -> None:
        """Remove it and what is below it. Its processes must have ended."""
        for root in self.folders:
            for folder, _, _ in os.walk(root, topdown=False):
                os.rmdir(folder)  # noqa: PTH106 - rmtree would try to unlink the kernel's files


class Sysctls:
    """The machine's settings as they were, for when the kubelet has changed them."""

    def __init__(self) -> None:
        files = (Path("/proc/sys") / name for name in SYSCTLS)
        self._values = {file: file.read_text() for file in files if file.exists()}

    def restore(self) -> None:
        """Put back what is different now."""
        for file, value in self._values.items():
            if file.read_text() != value:
                file.write_text(value)
