"""A cluster, started from programs: etcd, Kubernetes' control plane and its machines; or a machine that runs k3s.

The control plane and the test are in one network, the machines each in their own, on a common cable. Everything is kept
below one folder; ports and addresses are the namespaces' own, so that they are fixed.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.charts.tools import kubectl
from tests.k3s import certificates, images
from tests.k3s.machine import (
    DNS,
    MACHINES,
    OUTSIDE,
    SERVICES,
    ClusterError,
    Machine,
    Plan,
    address,
    do,
    last_words,
    succeeds,
)

FIRST, SECOND = "node", "other"
ETCD = "http://127.0.0.1:2379"
VOLUMES = 6
SECONDS = 180  # until a part must be up
SYSTEM = Path(__file__).with_name("system.yaml")


class Cluster:
    """``programs`` are k3s alone or the components; ``cgroup`` is the name of the pods' group."""

    def __init__(self, folder: Path, programs: dict[str, Path], cgroup: str) -> None:
        self.folder, self.programs, self.cgroup = folder, programs, cgroup
        self.logs = folder / "logs"
        self.kubeconfig = folder / "kubeconfig"
        self.certificates = folder / "certificates"
        self.machines: dict[str, Machine] = {}
        self._kubectl = str(kubectl())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._images: dict[str, Path] = {}

    @property
    def is_k3s(self) -> bool:
        """Whether it is k3s, which has one machine here."""
        return "k3s" in self.programs

    def start(self) -> None:
        """Bring the control plane and the first machine up."""
        self.logs.mkdir()
        for line in (
            "link set lo up",
            "link add uplink type bridge",
            f"address add {OUTSIDE}/24 dev uplink",
            "link set uplink up",
            f"route add {SERVICES} via {address(1)}",
        ):
            do("ip", *line.split())
        self._images[images.PAUSE] = images.pause(self.folder)
        if not self.is_k3s:
            addresses = [address(number) for number in range(1, MACHINES + 1)]
            local = ["127.0.0.1", OUTSIDE, *addresses, SERVICES.replace("0.0/16", "0.1")]
            names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            certificates.write(self.certificates, [*names, "kubernetes.default.svc.cluster.local"], local)
            self._write_kubeconfig()
            self._control_plane()
        self.add_machine(FIRST)

    def add_machine(self, name: str) -> None:
        """Switch a new machine on, give it the images, and wait for it."""
        number = len(self.machines) + 1
        cgroup = f"{self.cgroup}/{name}"
        self.machines[name] = Machine(Plan(number, name, self.folder, self.programs, cgroup))
        self._power_on(name)
        for image, archive in self._images.items():
            self.machines[name].load(archive, image)
        self.wait(f"ready machine {name}", lambda: self.is_ready(name))

    def power_off(self, name: str) -> None:
        """Switch a machine off; the first with the control plane, as where k3s has one node."""
        self.machines[name].power_off()
        if name == FIRST:
            for process in self._processes.values():
                process.kill()
            for process in self._processes.values():
                process.wait()
            self._processes.clear()

    def power_on(self, name: str) -> None:
        """Switch a machine on that was switched off."""
        if name == FIRST and not self.is_k3s:
            self._control_plane()
        self._power_on(name)

    def _power_on(self, name: str) -> None:
        self.machines[name].power_on()
        if self.is_k3s:
            self._join_k3s(self.machines[name])

    def is_ready(self, name: str) -> bool:
        """Whether Kubernetes takes this machine for well."""
        nodes = [node for node in self.get("nodes") if node["metadata"]["name"] == name]
        conditions = [condition for node in nodes for condition in node["status"].get("conditions", ())]
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def serve_names(self, coredns: Path) -> None:
        """DNS, volumes and their class."""
        self.load(images.of_program(coredns, self.folder / "coredns.tar"), images.COREDNS)
        text = SYSTEM.read_text().replace("@DNS@", DNS).replace("@IMAGE@", images.COREDNS).replace("@NODE@", FIRST)
        documents = [*yaml.safe_load_all(text), *(self._volume(number) for number in range(VOLUMES))]
        self.apply(documents)
        self.wait(
            "DNS", lambda: self.get("deployment", "coredns", namespace="kube-system")[0]["status"].get("readyReplicas")
        )

    def _volume(self, number: int) -> dict[str, Any]:
        path = self.folder / "volumes" / str(number)
        path.mkdir(parents=True)
        term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [FIRST]}]}
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

    def _join_k3s(self, machine: Machine) -> None:
        written = machine.plan.disk / "kubeconfig"
        self.wait("k3s", written.exists)
        here = f"https://{address(machine.plan.number)}:6443"
        self.kubeconfig.write_text(written.read_text().replace("https://127.0.0.1:6443", here))
        self.wait("k3s", lambda: self.get("namespaces", "default"))
        # A k3s built without its bundled manifests lacks this binding, by which logs and exec reach the kubelet.
        subject = {"kind": "User", "name": "kube-apiserver", "apiGroup": "rbac.authorization.k8s.io"}
        role = {"kind": "ClusterRole", "name": "system:kubelet-api-admin", "apiGroup": "rbac.authorization.k8s.io"}
        binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "subjects": [subject]}
        self.apply([binding | {"metadata": {"name": "kube-apiserver-kubelet-admin"}, "roleRef": role}])

    def _control_plane(self) -> None:
        # What wasn't synced outlives its process, and the whole cluster goes with the test.
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

    def _api_server(self) -> None:
        ca, accounts = self.certificates / "ca.crt", self.certificates / "accounts.key"
        server, admin = self.certificates / "server", self.certificates / "admin"
        self._spawn(
            "kube-apiserver",
            self.programs["kube-apiserver"],
            f"--etcd-servers={ETCD}",
            f"--advertise-address={OUTSIDE}",
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
        self.wait("API server", lambda: succeeds(self._kubectl, *self._who(), "get", "--raw=/readyz"))

    def _write_kubeconfig(self) -> None:
        admin = self.certificates / "admin"
        server = {"server": f"https://{OUTSIDE}:6443", "certificate-authority": str(self.certificates / "ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "admin", "user": {"client-certificate": f"{admin}.crt", "client-key": f"{admin}.key"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def _spawn(self, name: str, program: Path, *arguments: str) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(program), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait(self, what: str, found: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """What ``found`` finds. ClusterError: nothing, for that long, or one of the cluster's processes ended."""
        end = time.monotonic() + seconds
        while True:
            self._check()
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

    def _check(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                said = last_words(self.logs / f"{name}.log")
                raise ClusterError(f"{name} ended with {process.returncode}: {said}")
        for machine in self.machines.values():
            machine.check()

    def load(self, archive: Path, name: str) -> None:
        """Give an image's OCI archive to all machines, those to come as well."""
        self._images[name] = archive
        for machine in self.machines.values():
            machine.load(archive, name)

    def _who(self) -> tuple[str, ...]:
        return ("--kubeconfig", str(self.kubeconfig))

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl; what it prints."""
        return do(self._kubectl, *self._who(), *arguments, text=text)

    def get(self, kind: str, *what: str, namespace: str | None = None) -> list[dict[str, Any]]:
        """Objects of a kind: all, by name, or by what else kubectl's get takes."""
        where = ("--namespace", namespace) if namespace else ()
        found = json.loads(self.kubectl("get", kind, *what, *where, "--output=json"))
        return list(found["items"]) if found["kind"] == "List" else [found]

    def apply(self, documents: list[dict[str, Any]]) -> None:
        """Apply manifests."""
        self.kubectl("apply", "--filename=-", text=yaml.safe_dump_all(documents))
