"""Machines end: the only one, which comes back; and one of two, which does not."""

import re
import time

import yaml

from tests.k3s.cluster import FIRST, SECOND
from tests.k3s.elsewhere import Elsewhere
from tests.k3s.release import Service
from tests.k3s.scenarios.base import STEPS, Base, seconds
from tests.k3s.table import Row

OFF = 15  # seconds without power
ONE_NODE = "k3s has one node here"
SCHEDULE = {
    "slug": "each-minute",
    "interval": 60,
    "active": True,
    "parameters": {"agent": "quick", "input": "each-minute"},
}


class Machines(Base):
    """Each gives a row."""

    def power_cut(self) -> Row:
        """Of the only machine: everything ends at once and says nothing, and comes back on its volumes."""
        self.release.settled()
        steps = self.at_work("power")
        self.in_the_middle(set(steps.values()))
        cluster = self.release.cluster
        cluster.power_off(FIRST)
        time.sleep(OFF)
        at = time.time()
        cluster.power_on(FIRST)
        went_on, cut, wrong = self.outlived(steps, at, 600)
        figure = f"went on {went_on:.1f} s after it was back, {cut} cut calls again"
        return Row(f"sudden end of the only node, with the control plane, {STEPS} steps at work", figure, wrong)

    def applied(self) -> Row:
        """Without helm, on a second machine; database, bucket and Redis elsewhere, as the documents say for each."""
        cluster = self.release.cluster
        if cluster.is_k3s:
            return Row("everything elsewhere, on a second node", untried=ONE_NODE)
        self.release.uninstall()
        cluster.wait("end of the pods", lambda: not self.release.get("pods"), 120)
        self.release.remove_volumes()
        elsewhere = Elsewhere(cluster.folder / "elsewhere")
        cluster.wait("database, bucket and Redis", elsewhere.answer)
        elsewhere.make_bucket()
        self._choose(elsewhere)
        cluster.add_machine(SECOND)
        cluster.kubectl("cordon", FIRST)
        try:
            began = time.monotonic()
            (apply,) = self.release.documented("GitOps")
            self.release.shell(apply)
            self.release.settled()
            took = time.monotonic() - began
        finally:
            cluster.kubectl("uncordon", FIRST)
        self.service.close()
        self.service = Service(self.release)
        self.service.reaches(self.service.start("quick", "applied"), "succeeded")
        self._scheduled(since=0)
        nodes = {pod["spec"]["nodeName"] for pod in self.release.get("pods")}
        wrong = "" if nodes == {SECOND} else f"its pods are on {sorted(nodes)}"
        what = "`kubectl apply` of what helm renders; database, bucket and Redis elsewhere, Prefect server split"
        return Row(what, seconds(took), wrong)

    def _choose(self, elsewhere: Elsewhere) -> None:
        """By the Secrets and the values of the documents, word by word."""
        self.release.database_url = elsewhere.database_url
        self.release.values = self.release.values | {"schedules": {"step": [SCHEDULE]}}
        urls = {"postgresql": elsewhere.database_url, "s3": elsewhere.storage_url, "redis": elsewhere.redis_url}
        for heading in ("Your own database and bucket", "Scale"):
            (secrets,), (values,) = self.release.documented(heading), self.release.documented(heading, "yaml")
            self.release.shell(re.sub(r"url='(\w+):.*?'", lambda found: f"url='{urls[found[1]]}'", secrets))
            self.release.values = self.release.values | yaml.safe_load(values)

    def _scheduled(self, since: float) -> None:
        """Wait for a step by the schedule, which the split server's background services make."""

        def made() -> bool:
            return any(call.tag == SCHEDULE["slug"] and call.at > since for call in self.calls())

        self.release.cluster.wait("step by schedule", made, 200)

    def machine_lost(self) -> Row:
        """The one that every pod of the release is on: first its cable, then it. It doesn't come back."""
        cluster = self.release.cluster
        if cluster.is_k3s:
            return Row("loss of the node that all pods are on", untried=ONE_NODE)
        nodes = {pod["spec"]["nodeName"] for pod in self.release.pods("app.kubernetes.io/name=timestep")}
        if nodes != {SECOND}:
            return Row("loss of the node that all pods are on", "", f"they are on {sorted(nodes)}")
        steps = self.at_work("lost")
        self.in_the_middle(set(steps.values()))
        cluster.power_off(SECOND)
        at = time.time()
        cluster.wait("Kubernetes' notice of the loss", lambda: not cluster.is_ready(SECOND), 180)
        noticed = time.time() - at
        went_on, cut, wrong = self.outlived(steps, at, 900)
        self.service.reaches(self.service.start("quick", "after the loss"), "succeeded")
        self._scheduled(since=time.time())
        figure = f"noticed after {noticed:.0f} s, went on after {went_on:.0f} s, {cut} cut calls again"
        return Row(f"loss of the node that all pods are on, {STEPS} steps at work", figure, wrong)
