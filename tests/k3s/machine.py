"""One machine of the cluster, in namespaces of its own: its network, containerd, the kubelet and kube-proxy, or k3s.

Outside, :class:`Machine` switches it on and off; ``python -m tests.k3s.machine PLAN`` is what runs inside. Switched
off, its namespaces end: no process says goodbye, no mount and no address is left. Its disk, a folder, stays as the last
write left it: what a real one loses since its last sync is not lost here.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.k3s import images
from tests.k3s.host import Cgroup, plugins
from tests.k3s.private import enter, removed

OUTSIDE = "10.77.0.254"  # where the control plane is, and the test
PODS, SERVICES, DNS = "10.42.0.0/16", "10.43.0.0/16", "10.43.0.10"
SOCKET = "run/containerd/containerd.sock"  # on the machine's disk
MACHINES = 2
SECONDS = 60  # until its cable is in, or containerd answers
LOW = {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"}


class ClusterError(Exception):
    """A part of the cluster doesn't come up or has ended, or a command in it failed; the message has the last words."""


def address(number: int) -> str:
    """Of the machine with this number, 1 being the first."""
    return f"10.77.0.{number}"


def pods(number: int) -> str:
    """The addresses of its pods."""
    return PODS.replace("0.0/16", f"{number - 1}.0/24")


@dataclass(frozen=True)
class Plan:
    """What a machine is made of."""

    number: int
    name: str
    cluster: Path  # the cluster's folder: its certificates, its kubeconfig, its logs
    programs: dict[str, Path]  # kubelet and kube-proxy, or k3s
    cgroup: str

    @property
    def disk(self) -> Path:
        """The machine's folder."""
        return self.cluster / self.name

    def write(self, path: Path) -> None:
        """As JSON, for the program inside."""
        path.write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """What :meth:`write` wrote."""
        told = json.loads(path.read_text())
        programs = {name: Path(program) for name, program in told.pop("programs").items()}
        return cls(**told | {"programs": programs, "cluster": Path(told["cluster"])})


class Machine:
    """The machine, as seen from outside."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.socket = plan.disk / SOCKET
        self._cgroup = Cgroup(plan.cgroup)
        self._port = f"port-{plan.number}"
        self._process: subprocess.Popen[bytes] | None = None

    def power_on(self) -> None:
        """Start it, and wait for its containerd. ClusterError: it doesn't come."""
        disk = self.plan.disk
        disk.mkdir(exist_ok=True)
        shutil.rmtree(disk / "run", ignore_errors=True)  # what no machine keeps
        self._cgroup.create()
        self.plan.write(disk / "plan.json")
        program = [sys.executable, "-m", "tests.k3s.machine", str(disk / "plan.json")]
        self._process = enter(disk, program)
        entered, ours = Path(f"/proc/{self._process.pid}/ns/net"), Path("/proc/self/ns/net").readlink()
        self._until("namespace of its own", lambda: entered.exists() and entered.readlink() != ours)
        do("ip", "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(self._process.pid))
        do("ip", "link", "set", self._port, "master", "uplink", "up")
        self._until("containerd", lambda: succeeds("ctr", "--address", str(self.socket), "version"))

    def power_off(self) -> None:
        """Cut its cable, then end everything of it at once."""
        if self._process is None:
            return
        do("ip", "link", "delete", self._port)
        self._process.kill()  # its child goes with it: the first process of the namespace, with whom all others end
        self._process.wait()
        self._process = None
        removed(self._cgroup)

    def check(self) -> None:
        """ClusterError: it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise ClusterError(f"machine {self.plan.name} ended: {self._process.returncode}.")

    def load(self, archive: Path, name: str) -> None:
        """Import an image's OCI archive under this name, whatever it calls itself."""
        do(*self._ctr("images", "import", "--index-name", name, str(archive)))

    def kill(self, containers: list[str]) -> None:
        """kill -9 of containers' first processes, with whom all of a container dies; all at once."""
        commands = [self._ctr("tasks", "kill", "--signal", "SIGKILL", container) for container in containers]
        killing = [subprocess.Popen(command, stderr=subprocess.PIPE) for command in commands]
        for one in killing:
            if one.wait() != 0 and one.stderr is not None:
                raise ClusterError(f"kill: {one.stderr.read().decode().strip()[-300:]}")

    def _ctr(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]

    def _until(self, what: str, there: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not there():
            self.check()
            if time.monotonic() > end:
                raise ClusterError(f"machine {self.plan.name}: no {what} within {SECONDS} s.")
            time.sleep(0.05)


def do(*command: str, text: str | None = None) -> str:
    """Run a command; what it prints. ClusterError: it failed, and why."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{Path(command[0]).name} {' '.join(command[1:6])}: {done.stderr.strip()[-600:]}")
    return done.stdout


def last_words(log: Path) -> str:
    """The end of what a process wrote."""
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Inside:
    """The machine's programs, started in its namespaces."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> int:
        """Until one of them ends; its exit status."""
        while not succeeds("ip", "link", "show", "eth0"):
            time.sleep(0.05)
        self._network()
        self._containerd()
        if "k3s" in self.plan.programs:
            self._k3s()
        else:
            self._kubernetes()
        while True:
            for name, process in self._processes.items():
                if (code := process.poll()) is not None:
                    print(f"{self.plan.name}: {name} ended with {code}: {last_words(self._log(name))}", file=sys.stderr)
                    return code or 1
            time.sleep(0.2)

    def _network(self) -> None:
        own = self.plan.number
        others = [number for number in range(1, MACHINES + 1) if number != own]
        for line in (
            "link set lo up",
            f"address add {address(own)}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {OUTSIDE}",
            *(f"route add {pods(number)} via {address(number)}" for number in others),
        ):
            do("ip", *line.split())
        # Services are asked from outside, too, by way of this machine.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        routes = [{"dst": "0.0.0.0/0"}]
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True}
        bridge["ipam"] = {"type": "host-local", "ranges": [[{"subnet": pods(own)}]], "routes": routes}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        folder = self.plan.disk / "network"
        folder.mkdir(exist_ok=True)
        (folder / "pods.conflist").write_text(
            json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]})
        )

    def _containerd(self) -> None:
        disk = self.plan.disk
        path = disk / "containerd.toml"
        path.write_text(f"""version = 2
root = "{disk}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "/{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "{disk}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins()}"
conf_dir = "{disk}/network"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{shutil.which("runc")}"
SystemdCgroup = false
""")
        self._spawn("containerd", Path(shutil.which("containerd") or "containerd"), "--config", str(path))
        while not succeeds("ctr", "--address", f"/{SOCKET}", "version"):
            time.sleep(0.1)

    def _k3s(self) -> None:
        plan = self.plan
        low = ",".join(f"{name}<{value}" for name, value in LOW.items())
        kubelet = ["fail-cgroupv1=false", "cgroup-driver=cgroupfs", f"cgroup-root=/{plan.cgroup}"]
        kubelet += [f"eviction-hard={low}", "image-gc-high-threshold=100", "image-gc-low-threshold=99"]
        self._spawn(
            "k3s",
            plan.programs["k3s"],
            "server",
            f"--data-dir={plan.disk}/k3s",
            f"--container-runtime-endpoint=unix:///{SOCKET}",
            f"--node-name={plan.name}",
            f"--node-ip={address(plan.number)}",
            f"--cluster-cidr={PODS}",
            f"--service-cidr={SERVICES}",
            f"--cluster-dns={DNS}",
            f"--write-kubeconfig={plan.disk}/kubeconfig",
            "--flannel-backend=none",
            "--disable-network-policy",
            "--disable=traefik,metrics-server,servicelb,coredns,local-storage",
            "--disable-cloud-controller",
            "--disable-helm-controller",
            f"--resolv-conf={self._resolv()}",
            *(f"--kubelet-arg={argument}" for argument in kubelet),
        )

    def _kubernetes(self) -> None:
        plan = self.plan
        reach = f"--kubeconfig={plan.cluster}/kubeconfig"
        named = (f"--hostname-override={plan.name}", f"--node-ip={address(plan.number)}")
        self._spawn("kubelet", plan.programs["kubelet"], reach, *named, f"--config={self._kubelet()}")
        self._spawn("kube-proxy", plan.programs["kube-proxy"], f"--config={self._proxy()}")

    def _proxy(self) -> Path:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": f"{self.plan.cluster}/kubeconfig"},
            "mode": "iptables",
            "clusterCIDR": PODS,
            "hostnameOverride": self.plan.name,
            # Zeros leave the machine's table of connections as it is.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        path = self.plan.disk / "proxy.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _kubelet(self) -> Path:
        certificates = self.plan.cluster / "certificates"
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{certificates}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{certificates}/server.crt",
            "tlsPrivateKeyFile": f"{certificates}/server.key",
            "containerRuntimeEndpoint": f"unix:///{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.plan.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self._resolv()),
            "enforceNodeAllocatable": ["none"],
            "evictionHard": LOW,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        }
        path = self.plan.disk / "kubelet.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _resolv(self) -> Path:
        # Nothing outside can be reached: pods that ask for the node's names are told so at once.
        path = self.plan.disk / "resolv.conf"
        path.write_text("nameserver 127.0.0.1\n")
        return path

    def _spawn(self, name: str, program: Path, *arguments: str) -> None:
        with self._log(name).open("ab") as log:
            streams: dict[str, Any] = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
            self._processes[name] = subprocess.Popen([str(program), *arguments], env=os.environ, **streams)

    def _log(self, name: str) -> Path:
        return self.plan.cluster / "logs" / f"{self.plan.name}-{name}.log"


if __name__ == "__main__":
    sys.exit(Inside(Plan.read(Path(sys.argv[1]))).run())
