"""The chart is installed, and used as its users do."""

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from tests.k3s import calls, form
from tests.k3s.machine import ClusterError
from tests.k3s.scenarios.base import Base, lasted, seconds
from tests.k3s.table import Row
from tests.ui.browser import CHROMIUM

AGENTS = Path(__file__).parents[1] / "agents_file.py"
SAMPLES = 10  # of a step's latency
LINES = 3  # of the batch


class Use(Base):
    """Each gives a row."""

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
        return Row("`helm install --wait`", seconds(time.monotonic() - began))

    def first_step(self) -> Row:
        step = self.service.start("quick", "first")
        self.service.reaches(step, "succeeded")
        return Row("…from the command to the end of the first step", seconds(time.monotonic() - self.began))

    def chart_test(self) -> Row:
        began = time.monotonic()
        self.release.test()
        return Row("`helm test`", seconds(time.monotonic() - began))

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
        return Row("a step on the model server's model", seconds(time.monotonic() - began), wrong)

    def form(self) -> Row:
        """As a person does it in the Prefect UI, which asks for user and password."""
        if CHROMIUM is None:
            return Row("a step from the form of the Prefect UI", untried="there is no Chromium")
        ui = f"http://{self.release.address('prefect-server')}"
        (step,) = [one for one in self.release.prefect("deployments/filter") if one["name"] == "step"]
        login, picture = self.release.secret("prefect-auth", "auth"), self.release.cluster.folder / "form.png"
        began = time.time()
        asyncio.run(form.submit(ui, login, step["id"], "quick", "from the form", picture))

        def made() -> Any:
            return [call for call in self.calls() if call.tag == "from the form" and call.moment == "ended"]

        self.release.cluster.wait("the form's step", made, 120)
        return Row("a step from the form of the Prefect UI, login included", seconds(made()[0].at - began))

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
        return Row("an approved call, from the decision to its start", seconds(made - began), wrong)

    def learns(self) -> Row:
        """A training step is a Kubernetes job of its own."""
        step = self.train("learns", epochs=1)
        view = self.trained(step)
        jobs = self.jobs_of(step)
        wrong = "" if len(jobs) == 1 else f"it had {len(jobs)} jobs"
        if not (view["result"] or {}).get("training"):
            wrong = wrong or f"no version came of it: {json.dumps(view['result'])[:300]}"
        return Row("a training step, as a Kubernetes job", seconds(lasted(view)), wrong)

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
            f"a batch of {LINES} lines by a schedule (upgraded in {took:.0f} s)", seconds(run["total_run_time"]), wrong
        )

    def _pause(self, deployment: str) -> None:
        """No more batches: what is measured after this is measured without them."""
        for schedule in self.release.prefect(f"deployments/{deployment}/schedules", method="GET"):
            paused = {"active": False}
            self.release.prefect(f"deployments/{deployment}/schedules/{schedule['id']}", paused, method="PATCH")
