"""One node, started from programs: etcd, Kubernetes' components or k3s, containerd. Runs inside its own namespaces.

Everything is kept below one folder; ports and addresses are the namespace's own, so that they are fixed.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.charts.tools import kubectl
from tests.k3s import certificates, images
from tests.k3s.host import plugins

NODE, ADDRESS = "node", "10.77.0.1"
ETCD = "http://127.0.0.1:2379"
PODS, SERVICES, DNS = "10.42.0.0/16", "10.43.0.0/16", "10.43.0.10"
SOCKET = "/run/containerd/containerd.sock"
VOLUMES = 6
SECONDS = 180  # until a part must be up
SYSTEM = Path(__file__).with_name("system.yaml")


class ClusterError(Exception):
    """The cluster doesn't come up, or a command in it failed; the message has the last words."""


class Cluster:
    """``programs`` are k3s alone or the components; ``cgroup`` is the name of the pods' group."""

    def __init__(self, folder: Path, programs: dict[str, Path], cgroup: str) -> None:
        self.folder, self.programs, self.cgroup = folder, programs, cgroup
        self.logs = folder / "logs"
        self.kubeconfig = folder / "kubeconfig"
        self.certificates = folder / "certificates"
        self._kubectl = str(kubectl())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Bring the node up, with DNS, volumes and the pause image."""
        self.logs.mkdir()
        self._network()
        self._containerd()
        self.load(images.pause(self.folder), images.PAUSE)
        if "k3s" in self.programs:
            self._k3s()
        else:
            self._components()
        self.wait("a ready node", self._ready)

    def _ready(self) -> bool:
        nodes = self.get("nodes")
        conditions = [c for node in nodes for c in node["status"].get("conditions", ())]
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def serve_names(self, coredns: Path) -> None:
        """DNS, volumes and their class."""
        self.load(images.of_program(coredns, self.folder / "coredns.tar"), images.COREDNS)
        text = SYSTEM.read_text().replace("@DNS@", DNS).replace("@IMAGE@", images.COREDNS)
        documents = [*yaml.safe_load_all(text), *(self._volume(number) for number in range(VOLUMES))]
        self.apply(documents)
        self.wait(
            "DNS", lambda: self.get("deployment", "coredns", namespace="kube-system")[0]["status"].get("readyReplicas")
        )

    def _volume(self, number: int) -> dict[str, Any]:
        path = self.folder / "volumes" / str(number)
        path.mkdir(parents=True)
        term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"volume-{number}"},
            "spec": {
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "local",
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
            },
        }

    def _network(self) -> None:
        # The route lets the node's own processes reach services, whose addresses kube-proxy translates on the way out.
        for line in (
            "link set lo up",
            "link add uplink type bridge",
            f"address add {ADDRESS}/24 dev uplink",
            "link set uplink up",
            "route add default via 10.77.0.254 dev uplink",
        ):
            self._do("ip", *line.split())
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipMasq": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": PODS.replace("/16", "/24")}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (self.folder / "network").mkdir()
        (self.folder / "network" / "pods.conflist").write_text(json.dumps(network))

    def _containerd(self) -> None:
        path = self.folder / "containerd.toml"
        path.write_text(f"""version = 2
root = "{self.folder}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "{self.folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins()}"
conf_dir = "{self.folder}/network"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{shutil.which("runc")}"
SystemdCgroup = false
""")
        self._spawn("containerd", Path(shutil.which("containerd") or "containerd"), "--config", str(path))
        self.wait("containerd", lambda: self._try("ctr", "--address", SOCKET, "version"))

    def _k3s(self) -> None:
        disabled = "traefik,metrics-server,servicelb,coredns,local-storage"
        self._spawn(
            "k3s",
            self.programs["k3s"],
            "server",
            f"--data-dir={self.folder}/k3s",
            f"--container-runtime-endpoint=unix://{SOCKET}",
            f"--node-name={NODE}",
            f"--node-ip={ADDRESS}",
            f"--cluster-cidr={PODS}",
            f"--service-cidr={SERVICES}",
            f"--cluster-dns={DNS}",
            f"--write-kubeconfig={self.kubeconfig}",
            "--flannel-backend=none",
            "--disable-network-policy",
            f"--disable={disabled}",
            "--disable-cloud-controller",
            "--disable-helm-controller",
            f"--resolv-conf={self._resolv()}",
            *(f"--kubelet-arg={argument}" for argument in self._k3s_kubelet()),
        )
        self.wait("k3s", lambda: self.kubeconfig.exists() and self.get("namespaces", "default"))
        # A k3s built without its bundled manifests lacks this binding, by which logs and exec reach the kubelet.
        subject = {"kind": "User", "name": "kube-apiserver", "apiGroup": "rbac.authorization.k8s.io"}
        role = {"kind": "ClusterRole", "name": "system:kubelet-api-admin", "apiGroup": "rbac.authorization.k8s.io"}
        binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "subjects": [subject]}
        self.apply([binding | {"metadata": {"name": "kube-apiserver-kubelet-admin"}, "roleRef": role}])

    def _k3s_kubelet(self) -> list[str]:
        low = "memory.available<100Mi,nodefs.available<1%,imagefs.available<1%,nodefs.inodesFree<1%"
        arguments = ["fail-cgroupv1=false", "cgroup-driver=cgroupfs", f"cgroup-root=/{self.cgroup}"]
        return [*arguments, f"eviction-hard={low}", "image-gc-high-threshold=100", "image-gc-low-threshold=99"]

    def _components(self) -> None:
        local = ["127.0.0.1", ADDRESS, SERVICES.replace("0.0/16", "0.1")]
        names = ["localhost", NODE, "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        certificates.write(self.certificates, [*names, "kubernetes.default.svc.cluster.local"], local)
        self._write_kubeconfig()
        # What a power cut would lose is no matter here: the whole cluster goes with the test.
        self._spawn(
            "etcd",
            self.programs["etcd"],
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            "--unsafe-no-fsync",
        )
        self._api_server()
        reach = f"--kubeconfig={self.kubeconfig}"
        self._spawn(
            "kube-controller-manager",
            self.programs["kube-controller-manager"],
            reach,
            "--leader-elect=false",
            f"--root-ca-file={self.certificates}/ca.crt",
            f"--service-account-private-key-file={self.certificates}/accounts.key",
        )
        self._spawn("kube-scheduler", self.programs["kube-scheduler"], reach, "--leader-elect=false")
        named = f"--hostname-override={NODE}"
        self._spawn(
            "kubelet", self.programs["kubelet"], reach, named, f"--node-ip={ADDRESS}", f"--config={self._kubelet()}"
        )
        self._spawn("kube-proxy", self.programs["kube-proxy"], f"--config={self._proxy()}")

    def _api_server(self) -> None:
        ca, accounts = self.certificates / "ca.crt", self.certificates / "accounts.key"
        server, admin = self.certificates / "server", self.certificates / "admin"
        self._spawn(
            "kube-apiserver",
            self.programs["kube-apiserver"],
            f"--etcd-servers={ETCD}",
            f"--advertise-address={ADDRESS}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            f"--client-ca-file={ca}",
            f"--tls-cert-file={server}.crt",
            f"--tls-private-key-file={server}.key",
            f"--kubelet-client-certificate={admin}.crt",
            f"--kubelet-client-key={admin}.key",
            f"--kubelet-certificate-authority={ca}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={accounts}",
            f"--service-account-signing-key-file={accounts}",
        )
        self.wait("the API server", lambda: self._try(self._kubectl, *self._who(), "get", "--raw=/readyz"))

    def _proxy(self) -> Path:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig)},
            "mode": "iptables",
            "clusterCIDR": PODS,
            "hostnameOverride": NODE,
            # Zeros leave the machine's table of connections as it is.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        path = self.folder / "proxy.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _kubelet(self) -> Path:
        server = self.certificates / "server"
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{self.certificates}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{server}.crt",
            "tlsPrivateKeyFile": f"{server}.key",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self._resolv()),
            "enforceNodeAllocatable": ["none"],
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        }
        path = self.folder / "kubelet.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _resolv(self) -> Path:
        # Nothing outside can be reached: pods that ask for the node's names are told so at once.
        path = self.folder / "resolv.conf"
        path.write_text("nameserver 127.0.0.1\n")
        return path

    def _write_kubeconfig(self) -> None:
        admin = self.certificates / "admin"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": "https://127.0.0.1:6443",
                        "certificate-authority": str(self.certificates / "ca.crt"),
                    },
                }
            ],
            "users": [{"name": "admin", "user": {"client-certificate": f"{admin}.crt", "client-key": f"{admin}.key"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def _spawn(self, name: str, program: Path, *arguments: str) -> None:
        with (self.logs / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [str(program), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait(self, what: str, found: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """What ``found`` finds. ClusterError: nothing, for that long, or one of the cluster's processes ended."""
        end = time.monotonic() + seconds
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise ClusterError(f"{name} ended with {process.returncode}: {self.last_words(name)}")
            try:
                if result := found():
                    return result
            except (ClusterError, httpx.HTTPError) as error:
                reason = f": {error}"
            else:
                reason = ""
            if time.monotonic() > end:
                raise ClusterError(f"no {what} within {seconds:.0f} s{reason}")
            time.sleep(0.2)

    def last_words(self, name: str) -> str:
        """The end of a component's log."""
        lines = (self.logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])

    def load(self, archive: Path, name: str) -> None:
        """Import an image's OCI archive under this name, whatever it calls itself."""
        importing = ("images", "import", "--index-name", name, str(archive))
        self._do("ctr", "--address", SOCKET, "--namespace", "k8s.io", *importing)

    def _who(self) -> tuple[str, ...]:
        return ("--kubeconfig", str(self.kubeconfig))

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl; what it prints."""
        return self._do(self._kubectl, *self._who(), *arguments, text=text)

    def get(self, kind: str, *what: str, namespace: str | None = None) -> list[dict[str, Any]]:
        """Objects of a kind: all, by name, or by what else kubectl's get takes."""
        where = ("--namespace", namespace) if namespace else ()
        found = json.loads(self.kubectl("get", kind, *what, *where, "--output=json"))
        return list(found["items"]) if found["kind"] == "List" else [found]

    def apply(self, documents: list[dict[str, Any]]) -> None:
        """Apply manifests."""
        self.kubectl("apply", "--filename=-", text=yaml.safe_dump_all(documents))

    def _try(self, *command: str) -> bool:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _do(self, *command: str, text: str | None = None) -> str:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode != 0:
            raise ClusterError(f"{Path(command[0]).name} {' '.join(command[1:6])}: {done.stderr.strip()[-600:]}")
        return done.stdout
