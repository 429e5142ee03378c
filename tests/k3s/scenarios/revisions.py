"""The release is upgraded, rolled back, removed, and comes back."""

import time
from concurrent.futures import ThreadPoolExecutor

import asyncpg  # type: ignore[import-untyped]
import httpx

from tests.k3s import calls
from tests.k3s.machine import ClusterError
from tests.k3s.release import COMPONENT, ENDED, Service
from tests.k3s.scenarios.base import Base, seconds
from tests.k3s.table import Row

MEANWHILE, BETWEEN = 10, 6  # most steps that are started during an upgrade, and the seconds between two
# What may be left by an uninstall beside the volume claims: what every namespace has.
ORDINARY = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}


class Revisions(Base):
    """Each gives a row."""

    def upgraded(self) -> Row:
        """While steps are at work, one after the other; to pods of their own for every run."""
        self.release.settled()
        steps: dict[str, str] = {}
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            values = {"warmWorker": {"enabled": False}, "podAnnotations": {"test": "upgraded"}}
            upgrading = pool.submit(self.release.upgrade, **values)
            while not upgrading.done():
                if len(steps) < MEANWHILE:
                    tag = f"upgrade {len(steps)}"
                    steps[self.service.start("worker", tag)] = tag
                time.sleep(BETWEEN)
            upgrading.result()
        took = time.monotonic() - began
        for step in steps:
            self.service.reaches(step, "succeeded", seconds=600)
        wrong, cut = calls.wrong(self.release, self.calls(), steps, "worker")
        what = f"`helm upgrade` that replaces every pod, {len(steps)} steps meanwhile"
        return Row(what, f"{seconds(took)}, {cut} cut calls again", wrong)

    def rolled_back(self) -> Row:
        """To the first revision: the schedule is gone, warm workers are back, and what was done is still there."""
        began = time.monotonic()
        self.release.rollback(1)
        took = time.monotonic() - began
        self.service.reaches(self.service.start("quick", "rolled back"), "succeeded")
        schedules = [
            one["slug"] for deployment in self.release.prefect("deployments/filter") for one in deployment["schedules"]
        ]
        wrong = "the schedule of a later revision is still there" if "each-minute" in schedules else ""
        if not self.release.pods(f"{COMPONENT}=warm-worker"):
            wrong = wrong or "the warm worker isn't back"
        return Row("`helm rollback` to the first revision", seconds(took), wrong)

    def passwords_changed(self) -> Row:
        """The Prefect server's and the database's, by the documents' commands; the old ones open nothing."""
        old = self.release.secret("prefect-auth", "auth"), self.release.database_login()
        (commands,) = self.release.documented("TLS and auth in front")
        began = time.monotonic()
        self.release.shell(commands)
        for kind in ("statefulset", "deployment"):
            for one in self.release.get(kind):
                self.release.kubectl("rollout", "status", f"{kind}/{one['metadata']['name']}", "--timeout=300s")
        took = time.monotonic() - began
        self.service.reaches(self.service.start("quick", "new passwords"), "succeeded")
        self.release.prefect("admin/version", method="GET")
        user, password = old[0].split(":", 1)
        url = f"http://{self.release.address('prefect-server')}/api/admin/version"
        answer = httpx.get(url, auth=(user, password), trust_env=False)
        wrong = "" if answer.status_code == 401 else f"the old login is answered {answer.status_code}"
        try:
            self.release.fetch("select 1", login=old[1])
        except asyncpg.InvalidPasswordError:
            pass
        else:
            wrong = wrong or "the database's old password is still good"
        return Row("other passwords, by the commands of the documents", seconds(took), wrong)

    def without_image(self) -> Row:
        """An installation whose image isn't there, and its removal, by the documents' commands."""
        where = "timestep charts/timestep --namespace timestep"
        began = time.monotonic()
        try:
            self.release.shell(f"helm install {where} --set image.tag=nowhere --wait --timeout 20s")
        except ClusterError as error:
            wrong = "" if "timestep:nowhere" in str(error) else f"it says {error}"
        else:
            wrong = "it was installed"
        self.release.shell(self.release.documented("Uninstall")[1])
        took = time.monotonic() - began
        return Row("a release without an image, failed and removed", seconds(took), wrong or self._left()[1])

    def uninstalled(self) -> Row:
        began = time.monotonic()
        self.release.uninstall()
        took = time.monotonic() - began
        claims, wrong = self._left()
        if len(claims) != 2:
            wrong = wrong or f"volume claims left: {claims}"
        return Row(f"`helm uninstall` leaves {', '.join(claims)}", seconds(took), wrong)

    def _left(self) -> tuple[list[str], str]:
        """The volume claims that are left, and what else is and shouldn't be."""
        self.release.cluster.wait("end of the pods", lambda: not self.release.get("pods"), 120)
        kinds = self.release.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        kinds = [kind for kind in kinds if not kind.startswith("events")]
        found = self.release.get(",".join(kinds))
        left = {(one["kind"], one["metadata"]["name"]) for one in found} - ORDINARY
        claims = sorted(name for kind, name in left if kind == "PersistentVolumeClaim")
        others = sorted(f"{kind} {name}" for kind, name in left if kind != "PersistentVolumeClaim")
        return claims, f"left: {', '.join(others)}" if others else ""

    def installed_again(self) -> Row:
        """On the volumes that were kept: the steps of before are there."""
        began = time.monotonic()
        self.release.install()
        took = time.monotonic() - began
        self.service.close()
        self.service = Service(self.release)
        before = self.service.request("GET", "/v1/steps?agent=careful")["data"]
        wrong = "" if any(view["status"] in ENDED for view in before) else "the steps of before aren't there"
        self.service.reaches(self.service.start("quick", "installed again"), "succeeded")
        return Row("`helm install` on the volumes that were kept", seconds(took), wrong)

    def restored(self) -> Row:
        """Backed up, removed with its volumes, and restored, by what the documents say, word by word."""
        known = {view["id"]: view["status"] for view in self.service.request("GET", "/v1/steps?limit=100")["data"]}
        models = self._models()
        back_up, restore = self.release.documented("Back up, restore")
        self.release.shell(back_up)
        self.release.uninstall()
        self.release.cluster.wait("end of the pods", lambda: not self.release.get("pods"), 120)
        self.release.remove_volumes()
        began = time.monotonic()
        self.release.shell(restore)
        took = time.monotonic() - began
        self.service.close()
        self.service = Service(self.release)
        found = {step: self.service.step(step)["status"] for step in known}
        wrong = "" if found == known else f"of the steps {known} there are {found}"
        if (now := self._models()) != models:
            wrong = wrong or f"of the models {models} there are {now}"
        self.service.reaches(self.service.start("quick", "restored"), "succeeded")
        return Row(f"a backup restored on empty volumes, {len(known)} steps", seconds(took), wrong)

    def _models(self) -> list[str]:
        return sorted(model["id"] for model in self.service.request("GET", "/v1/models")["data"])
