"""One part after the other is killed, while steps are at work."""

import time

from tests.k3s import calls
from tests.k3s.release import COMPONENT, FLOW_RUN
from tests.k3s.scenarios.base import STEPS, Base
from tests.k3s.table import Row

EPOCHS = 2


class Kills(Base):
    """Each gives a row: how long it took, and whether a finished call was repeated."""

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

    def _killed(self, what: str, labels: str) -> Row:
        """kill -9 while steps are in their middle; they end, with each call made once, and new ones are taken.

        The figure is the time until the steps went on, and until a new step was done.
        """
        self.release.settled()
        steps = self.at_work(what)
        containers = self.release.containers(labels)
        self.in_the_middle(set(steps.values()))
        at = self.release.kill(containers)
        time.sleep(0.5)
        new = self.service.start("quick", f"after {what}")
        self.service.reaches(new, "succeeded", seconds=300)
        answered = time.time() - at
        went_on, cut, wrong = self.outlived(steps, at, 300)
        figure = f"went on after {went_on:.1f} s, new step done after {answered:.1f} s"
        return Row(f"kill -9 {what}, {STEPS} steps at work", f"{figure}, {cut} cut calls again", wrong)

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

    def training_pod_killed(self) -> Row:
        """A flow run's own pod, after the first of its epochs."""
        step = self.train("killed in training", EPOCHS)
        query = "select attempt, started_at, finished_at from units where step_id = $1 and kind = 'epoch' order by 2"

        def second() -> bool:
            rows = self.release.fetch(query, step)
            return len(rows) == EPOCHS and rows[0]["finished_at"] is not None

        self.release.cluster.wait("second epoch", second, 600)
        at = self.release.kill(self.release.containers(f"{FLOW_RUN}={step}"))
        self.trained(step)
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

    def flow_run_pod_killed(self) -> Row:
        """Without warm workers: a step that thinks, in a pod of its own."""
        self.release.settled()
        step, tag = self.service.start("worker", "own pod"), "own pod"
        # Before its middle: a look at the pods may last longer than the rest of the step.
        mine = f"{FLOW_RUN}={step}"
        containers = self.release.cluster.wait("pod of the step", lambda: self.release.containers(mine), 180)
        self.in_the_middle({tag})
        at = self.release.kill(containers)
        self.service.reaches(step, "succeeded", seconds=300)
        wrong, cut = calls.wrong(self.release, self.calls(), {step: tag}, "worker")
        jobs = len(self.jobs_of(step))
        wrong = wrong or ("" if jobs == 2 else f"it had {jobs} jobs")
        return Row(
            "kill -9 pod of a flow run", f"went on after {self.went_on(tag, at):.1f} s, {cut} cut calls again", wrong
        )
