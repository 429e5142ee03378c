"""What is done to an installed chart, one after the other; each gives a row: its figure, and what was wrong."""

import asyncio
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from playwright.async_api import Error as PlaywrightError

from tests.conftest import conversation
from tests.k3s import calls, form
from tests.k3s.cluster import FIRST, SECOND
from tests.k3s.collector import Collector
from tests.k3s.elsewhere import Elsewhere
from tests.k3s.machine import ClusterError
from tests.k3s.release import COMPONENT, ENDED, FLOW_RUN, Release, Service
from tests.k3s.table import Row, Table
from tests.ui.browser import CHROMIUM

AGENTS = Path(__file__).with_name("agents_file.py")
STEPS = 3  # at work while something is killed
SAMPLES = 10  # of a step's latency
LINES = 3  # of the batch
EPOCHS = 2
OFF = 15  # seconds without power
SCHEDULE = {
    "slug": "each-minute",
    "interval": 60,
    "active": True,
    "parameters": {"agent": "quick", "input": "each-minute"},
}
MEANWHILE, BETWEEN = 10, 6  # most steps that are started during an upgrade, and the seconds between two
# What may be left by an uninstall beside the volume claims: what every namespace has.
ORDINARY = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
MIDDLE = "worker/1/0"  # a call in the middle of a step

Scenario = Callable[[], Row]
FAILURES = (ClusterError, httpx.HTTPError, PlaywrightError, OSError, ValueError, KeyError, AssertionError)


class Scenarios:
    """They build on each other: the release of the first is the one that the last removes."""

    def __init__(self, release: Release, table: Table, collector: Collector) -> None:
        self.release, self.table, self.collector = release, table, collector
        self.service: Service
        self.training: dict[str, Any] = {}

    def run(self, only: Sequence[str] = ()) -> None:
        """All of them, or some by name. One that fails doesn't keep the others from being tried; installing does."""
        self.table.add(self.install())
        if self.table.failed:
            return
        self.service = Service(self.release)
        rest: tuple[Scenario, ...] = (
            self.first_step,
            self.chart_test,
            self.latency,
            self.real_model,
            self.form,
            self.approval,
            self.learns,
            self.scheduled_batch,
            self.warm_worker_killed,
            self.training_pod_killed,
            self.api_killed,
            self.prefect_killed,
            self.database_killed,
            self.model_server_killed,
            self.power_cut,
            self.upgraded,
            self.flow_run_pod_killed,
            self.worker_killed,
            self.rolled_back,
            self.uninstalled,
            self.installed_again,
            self.restored,
            self.applied,
            self.machine_lost,
        )
        for scenario in rest:
            if only and scenario.__name__ not in only:
                continue
            try:
                self.table.add(scenario())
            except FAILURES as error:
                name = scenario.__name__.replace("_", " ")
                said = f"{type(error).__name__}: {error} {self.release.trouble()}"
                self.table.add(Row(name, "", " ".join(said.split()).replace("|", "/")[:1500]))

    def install(self) -> Row:
        """``helm install --wait``, from nothing to ready."""
        self.release.make_namespace()
        self.release.values = {
            "agents": {"files": {"agents.py": AGENTS.read_text()}},
            "model": {"threads": 1},
            "extraEnv": [{"name": "CALLS", "value": self.collector.address}],
        }
        began = time.monotonic()
        try:
            self.release.install()
        except ClusterError as error:
            return Row("`helm install --wait`", "", str(error).replace("|", "/"))
        self.began = began
        return Row("`helm install --wait`", _seconds(time.monotonic() - began))

    def first_step(self) -> Row:
        step = self.service.start("quick", "first")
        self.service.reaches(step, "succeeded")
        return Row("…from the command to the end of the first step", _seconds(time.monotonic() - self.began))

    def chart_test(self) -> Row:
        began = time.monotonic()
        self.release.test()
        return Row("`helm test`", _seconds(time.monotonic() - began))

    def latency(self) -> Row:
        """Of a step whose model answers at once: what the service itself takes."""
        took = []
        for number in range(SAMPLES):
            began = time.monotonic()
            self.service.reaches(self.service.start("quick", f"latency-{number}"), "succeeded")
            took.append(time.monotonic() - began)
        return Row("a step over the API, median", f"{statistics.median(took):.2f} s of {len(took)}")

    def real_model(self) -> Row:
        began = time.monotonic()
        view = self.service.reaches(self.service.start("pupil", "What is 2 plus 2?"), "succeeded")
        wrong = "" if view["output"] else "it said nothing"
        return Row("a step on the model server's model", _seconds(time.monotonic() - began), wrong)

    def form(self) -> Row:
        """As a person does it in the Prefect UI, which asks for user and password."""
        if CHROMIUM is None:
            return Row("a step from the form of the Prefect UI", "not tried without Chromium")
        ui = f"http://{self.release.address('prefect-server')}"
        (step,) = [one for one in self.release.prefect("deployments/filter") if one["name"] == "step"]
        login, picture = self.release.secret("prefect-auth", "auth"), self.release.cluster.folder / "form.png"
        began = time.time()
        asyncio.run(form.submit(ui, login, step["id"], "quick", "from the form", picture))

        def made() -> Any:
            return [call for call in self.calls() if call.tag == "from the form" and call.moment == "ended"]

        self.release.cluster.wait("the form's step", made, 120)
        return Row("a step from the form of the Prefect UI, login included", _seconds(made()[0].at - began))

    def approval(self) -> Row:
        step = self.service.start("careful", "approval")
        view = self.service.reaches(step, "waiting_approval")
        time.sleep(2)
        early = [call for call in self.calls() if call.tag == "approval" and call.call == "careful/1/0"]
        began = time.time()
        (pending,) = view["pending"]
        decision = {"call": pending["position"], "verdict": "approve", "digest": pending["digest"]}
        self.service.request("POST", f"/v1/steps/{step}/approvals", json={"decisions": [decision]})
        self.service.reaches(step, "succeeded")
        wrong, _ = calls.wrong(self.release, self.calls(), {step: "approval"}, "careful")
        (made,) = [
            call.at
            for call in self.calls()
            if (call.tag, call.call, call.moment) == ("approval", "careful/1/0", "begun")
        ]
        wrong = wrong or ("it ran before it was approved" if early else "")
        return Row("an approved call, from the decision to its start", _seconds(made - began), wrong)

    def learns(self) -> Row:
        """A training step is a Kubernetes job of its own."""
        step = self._train("learns", epochs=1)
        view = self._trained(step)
        jobs = self._jobs(step)
        wrong = "" if len(jobs) == 1 else f"it had {len(jobs)} jobs"
        if not (view["result"] or {}).get("training"):
            wrong = wrong or f"no version came of it: {json.dumps(view['result'])[:300]}"
        return Row("a training step, as a Kubernetes job", _seconds(_lasted(view)), wrong)

    def _train(self, key: str, epochs: int) -> str:
        dataset = "".join(f"{json.dumps(conversation(number))}\n" for number in range(8)).encode()
        sent = ("dataset.jsonl", dataset)
        purpose = {"purpose": "fine-tune"}
        file = self.service.request("POST", "/v1/files", files={"file": sent}, data=purpose)["id"]
        training = {
            "dataset": file,
            "epochs": epochs,
            "context_length": 256,
            "promote": "never",
            "validation_split": 0.2,
        }
        return self.service.start("pupil", key, mode="training", training=training)

    def _trained(self, step: str) -> dict[str, Any]:
        return self.service.reaches(step, "succeeded", seconds=900)

    def _jobs(self, step: str) -> list[dict[str, Any]]:
        return self.release.get("jobs", f"--selector={FLOW_RUN}={step}")

    def scheduled_batch(self) -> Row:
        """A schedule of the values: added by an upgrade, and a batch of it runs within its interval."""
        lines = [{"agent": "quick", "input": f"line-{number}"} for number in range(LINES)]
        file = self.release.volume("storage") / "nightly.jsonl"
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        schedule = {"slug": "each-minute", "interval": 60, "active": True}
        began = time.monotonic()
        self.release.upgrade(
            schedules={"batch": [schedule | {"parameters": {"inputs": "nightly.jsonl", "concurrency": 2}}]}
        )
        took = time.monotonic() - began

        def ended() -> Any:
            body = {
                "flows": {"name": {"any_": ["batch"]}},
                "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}},
            }
            return self.release.prefect("flow_runs/filter", body)

        run = self.release.cluster.wait("batch by schedule", ended, 200)[0]
        self._pause(run["deployment_id"])
        wrong = "" if run["state"]["type"] == "COMPLETED" and run["auto_scheduled"] else f"it ended as {run['state']}"
        results = self.release.volume("storage") / "batches" / run["id"] / "output.jsonl"
        if not wrong:
            statuses = [json.loads(line)["status"] for line in results.read_text().splitlines()]
            wrong = "" if statuses == ["completed"] * LINES else f"its lines are {statuses}"
        return Row(
            f"a batch of {LINES} lines by a schedule (upgraded in {took:.0f} s)", _seconds(run["total_run_time"]), wrong
        )

    def _pause(self, deployment: str) -> None:
        """No more batches: what is measured after this is measured without them."""
        for schedule in self.release.prefect(f"deployments/{deployment}/schedules", method="GET"):
            paused = {"active": False}
            self.release.prefect(f"deployments/{deployment}/schedules/{schedule['id']}", paused, method="PATCH")

    def warm_worker_killed(self) -> Row:
        return self._killed("warm worker", f"{COMPONENT}=warm-worker")

    def api_killed(self) -> Row:
        return self._killed("API, both pods", f"{COMPONENT}=api")

    def prefect_killed(self) -> Row:
        return self._killed("Prefect server", f"{COMPONENT}=prefect-server")

    def database_killed(self) -> Row:
        return self._killed("database", f"{COMPONENT}=database")

    def worker_killed(self) -> Row:
        """Without warm workers: what runs goes on, and what is new has a pod once the worker is back."""
        return self._killed("worker, each step in a pod", f"{COMPONENT}=worker")

    def model_server_killed(self) -> Row:
        """While it answers a step: that call is asked again."""
        self.release.settled()
        step = self.service.start("talker", "Once upon a time")
        self._unfinished(step)
        at = self.release.kill(self.release.containers(f"{COMPONENT}=model-server"))
        asked = {"model": "local/talker", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
        time.sleep(0.5)
        self.service.request("POST", "/v1/chat/completions", json=asked, seconds=180)
        answered = time.time() - at
        self.service.reaches(step, "succeeded", seconds=300)
        rows = self.release.fetch("select position, finished_at from units where step_id = $1", step)
        told = [(row["position"], row["finished_at"] is not None) for row in rows]
        wrong = "" if told == [("talker/0", True)] else f"its record is {told}"
        return Row("kill -9 model server in a call of a step", f"answers again after {answered:.1f} s", wrong)

    def _unfinished(self, step: str) -> None:
        """Wait until a step's first call is under way."""
        query = "select 1 from units where step_id = $1 and finished_at is null"
        self.release.cluster.wait("call of the step", lambda: self.release.fetch(query, step), 60)

    def power_cut(self) -> Row:
        """Of the only machine, with all volumes: everything ends at once and says nothing, and comes back."""
        self.release.settled()
        steps = {self.service.start("worker", tag): tag for tag in (f"power {n}" for n in range(STEPS))}
        self._in_the_middle(set(steps.values()))
        cluster = self.release.cluster
        cluster.power_off(FIRST)
        time.sleep(OFF)
        at = time.time()
        cluster.power_on(FIRST)
        for step in steps:
            self.service.reaches(step, "succeeded", seconds=600)
        wrong, cut = calls.wrong(self.release, self.calls(), steps, "worker")
        went_on = statistics.median(self._went_on(tag, at) for tag in steps.values())
        figure = f"went on {went_on:.1f} s after it was back, {cut} cut calls again"
        return Row(f"power cut of the node, control plane and volumes on it, {STEPS} steps at work", figure, wrong)

    def applied(self) -> Row:
        """Without helm, on a second machine; database, bucket and Redis elsewhere, as the documents say for each."""
        cluster = self.release.cluster
        if cluster.is_k3s:
            return Row("everything elsewhere, on a second node", "not tried with k3s, which has one here")
        self.release.uninstall()
        cluster.wait("end of the pods", lambda: not self.release.get("pods"), 120)
        self.release.remove_volumes()
        elsewhere = Elsewhere(cluster.folder / "elsewhere")
        cluster.wait("database, bucket and Redis", elsewhere.answers)
        elsewhere.make_bucket()
        cluster.add_machine(SECOND)
        cluster.kubectl("cordon", FIRST)
        self.release.values = self.release.values | {"schedules": {"step": [SCHEDULE]}}
        urls = {"postgresql": elsewhere.database_url, "s3": elsewhere.storage_url, "redis": elsewhere.redis_url}
        for heading in ("Your own database and bucket", "Scale"):
            (secrets,), (values,) = self.release.documented(heading), self.release.documented(heading, "yaml")
            self.release.shell(re.sub(r"url='(\w+):.*?'", lambda found: f"url='{urls[found[1]]}'", secrets))
            self.release.values = self.release.values | yaml.safe_load(values)
        began = time.monotonic()
        (apply,) = self.release.documented("GitOps")
        self.release.shell(apply)
        self.release.settled()
        took = time.monotonic() - began
        cluster.kubectl("uncordon", FIRST)
        self.release.database_url = elsewhere.database_url
        self.service.close()
        self.service = Service(self.release)
        self.service.reaches(self.service.start("quick", "applied"), "succeeded")
        self._scheduled(since=0)
        nodes = {pod["spec"]["nodeName"] for pod in self.release.get("pods")}
        wrong = "" if nodes == {SECOND} else f"its pods are on {sorted(nodes)}"
        what = "`kubectl apply` of what helm renders; database, bucket and Redis elsewhere, Prefect server split"
        return Row(what, _seconds(took), wrong)

    def _scheduled(self, since: float) -> None:
        """Wait for a step by the schedule, which the split server's background services make."""

        def made() -> bool:
            return any(call.tag == SCHEDULE["slug"] and call.at > since for call in self.calls())

        self.release.cluster.wait("step by schedule", made, 200)

    def machine_lost(self) -> Row:
        """The one that every pod of the release is on: first its cable, then it. It doesn't come back."""
        cluster = self.release.cluster
        if cluster.is_k3s:
            return Row("loss of the node", "not tried with k3s, which has one here")
        steps = {self.service.start("worker", tag): tag for tag in (f"lost {n}" for n in range(STEPS))}
        self._in_the_middle(set(steps.values()))
        at = time.time()
        cluster.power_off(SECOND)
        cluster.wait("Kubernetes' notice of the loss", lambda: not cluster.is_ready(SECOND), 180)
        noticed = time.time() - at
        for step in steps:
            self.service.reaches(step, "succeeded", seconds=900)
        wrong, cut = calls.wrong(self.release, self.calls(), steps, "worker")
        went_on = statistics.median(self._went_on(tag, at) for tag in steps.values())
        self.service.reaches(self.service.start("quick", "after the loss"), "succeeded")
        self._scheduled(since=time.time())
        figure = f"noticed after {noticed:.0f} s, went on after {went_on:.0f} s, {cut} cut calls again"
        return Row(f"loss of the node that all pods are on, {STEPS} steps at work", figure, wrong)

    def _killed(self, what: str, labels: str) -> Row:
        """kill -9 while steps are in their middle; they end, with each call made once, and new ones are taken.

        The figure is the time until the steps went on, and until a new step was done.
        """
        self.release.settled()
        steps = {self.service.start("worker", tag): tag for tag in (f"{what} {n}" for n in range(STEPS))}
        containers = self.release.containers(labels)
        self._in_the_middle(set(steps.values()))
        at = self.release.kill(containers)
        time.sleep(0.5)
        new = self.service.start("quick", f"after {what}")
        self.service.reaches(new, "succeeded", seconds=300)
        answered = time.time() - at
        for step in steps:
            self.service.reaches(step, "succeeded", seconds=300)
        wrong, cut = calls.wrong(self.release, self.calls(), steps, "worker")
        went_on = [self._went_on(tag, at) for tag in steps.values()]
        figure = f"went on after {statistics.median(went_on):.1f} s, new step done after {answered:.1f} s"
        return Row(f"kill -9 {what}, {STEPS} steps at work", f"{figure}, {cut} cut calls again", wrong)

    def _in_the_middle(self, tags: set[str]) -> None:
        def there() -> bool:
            begun = {call.tag for call in self.calls() if call.call == MIDDLE}
            return tags <= begun

        self.release.cluster.wait(f"call {MIDDLE} of every step", there, 180)

    def _went_on(self, tag: str, since: float) -> float:
        """Seconds until a step's next call began."""
        return (
            min(call.at for call in self.calls() if call.tag == tag and call.moment == "begun" and call.at > since)
            - since
        )

    def training_pod_killed(self) -> Row:
        """A flow run's own pod, after the first of its epochs."""
        step = self._train("killed in training", EPOCHS)
        query = "select attempt, started_at, finished_at from units where step_id = $1 and kind = 'epoch' order by 2"

        def second() -> bool:
            rows = self.release.fetch(query, step)
            return len(rows) == EPOCHS and rows[0]["finished_at"] is not None

        self.release.cluster.wait("second epoch", second, 600)
        at = self.release.kill(self.release.containers(f"{FLOW_RUN}={step}"))
        self._trained(step)
        rows = self.release.fetch(query, step)
        attempts = [row["attempt"] for row in rows]
        wrong = (
            "" if attempts == sorted(set(attempts)) and len(rows) == EPOCHS else f"epochs were trained by {attempts}"
        )
        starts = self.release.fetch(
            "select created_at from events where step_id = $1 and type = 'step.started' order by id", step
        )
        went_on = starts[-1]["created_at"].timestamp() - at
        return Row("kill -9 pod of a training step in its 2nd epoch", f"went on after {went_on:.1f} s", wrong)

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
        return Row(what, f"{_seconds(took)}, {cut} cut calls again", wrong)

    def flow_run_pod_killed(self) -> Row:
        """Without warm workers: a step that thinks, in a pod of its own."""
        self.release.settled()
        step, tag = self.service.start("worker", "own pod"), "own pod"
        # Before its middle: a look at the pods may last longer than the rest of the step.
        mine = f"{FLOW_RUN}={step}"
        containers = self.release.cluster.wait("pod of the step", lambda: self.release.containers(mine), 180)
        self._in_the_middle({tag})
        at = self.release.kill(containers)
        self.service.reaches(step, "succeeded", seconds=300)
        wrong, cut = calls.wrong(self.release, self.calls(), {step: tag}, "worker")
        jobs = len(self._jobs(step))
        wrong = wrong or ("" if jobs == 2 else f"it had {jobs} jobs")
        return Row(
            "kill -9 pod of a flow run", f"went on after {self._went_on(tag, at):.1f} s, {cut} cut calls again", wrong
        )

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
        return Row("`helm rollback` to the first revision", _seconds(took), wrong)

    def uninstalled(self) -> Row:
        began = time.monotonic()
        self.release.uninstall()
        took = time.monotonic() - began
        self.release.cluster.wait("end of the pods", lambda: not self.release.get("pods"), 120)
        kinds = self.release.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        kinds = [kind for kind in kinds if not kind.startswith("events")]
        found = self.release.get(",".join(kinds))
        left = {(one["kind"], one["metadata"]["name"]) for one in found} - ORDINARY
        claims = sorted(name for kind, name in left if kind == "PersistentVolumeClaim")
        others = sorted(f"{kind} {name}" for kind, name in left if kind != "PersistentVolumeClaim")
        wrong = f"left: {', '.join(others)}" if others else ""
        if len(claims) != 2:
            wrong = wrong or f"volume claims left: {claims}"
        return Row(f"`helm uninstall` leaves {', '.join(claims)}", _seconds(took), wrong)

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
        return Row("`helm install` on the volumes that were kept", _seconds(took), wrong)

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
        return Row(f"a backup restored on empty volumes, {len(known)} steps", _seconds(took), wrong)

    def _models(self) -> list[str]:
        return sorted(model["id"] for model in self.service.request("GET", "/v1/models")["data"])

    def calls(self) -> list[calls.Call]:
        return calls.read(self.collector.path)


def _lasted(view: dict[str, Any]) -> float:
    return (datetime.fromisoformat(view["ended"]) - datetime.fromisoformat(view["created"])).total_seconds()


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"
