"""What all scenarios have: a release with its service, its table, and what its agents said they did."""

import json
import statistics
from datetime import datetime
from typing import Any

from tests.conftest import conversation
from tests.k3s import calls
from tests.k3s.collector import Collector
from tests.k3s.release import FLOW_RUN, Release, Service
from tests.k3s.table import Table

STEPS = 3  # at work while something dies
MIDDLE = "worker/1/0"  # a call in the middle of a step


class Base:
    """The release that a scenario is about."""

    def __init__(self, release: Release, table: Table, collector: Collector) -> None:
        self.release, self.table, self.collector = release, table, collector
        self.service: Service
        self.began = 0.0  # the installation

    def train(self, key: str, epochs: int) -> str:
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

    def trained(self, step: str) -> dict[str, Any]:
        return self.service.reaches(step, "succeeded", seconds=900)

    def jobs_of(self, step: str) -> list[dict[str, Any]]:
        return self.release.get("jobs", f"--selector={FLOW_RUN}={step}")

    def at_work(self, what: str) -> dict[str, str]:
        """Start steps (id -> tag), as many as are to be at work while something dies."""
        return {self.service.start("worker", tag): tag for tag in (f"{what} {number}" for number in range(STEPS))}

    def outlived(self, steps: dict[str, str], since: float, seconds: float) -> tuple[float, int, str]:
        """Wait for the end of steps: when they went on, a median; how many cut calls ran again; what was wrong."""
        for step in steps:
            self.service.reaches(step, "succeeded", seconds=seconds)
        wrong, cut = calls.wrong(self.release, self.calls(), steps, "worker")
        return statistics.median(self.went_on(tag, since) for tag in steps.values()), cut, wrong

    def in_the_middle(self, tags: set[str]) -> None:
        def there() -> bool:
            begun = {call.tag for call in self.calls() if call.call == MIDDLE}
            return tags <= begun

        self.release.cluster.wait(f"call {MIDDLE} of every step", there, 180)

    def went_on(self, tag: str, since: float) -> float:
        """Seconds until a step's next call began."""
        return (
            min(call.at for call in self.calls() if call.tag == tag and call.moment == "begun" and call.at > since)
            - since
        )

    def calls(self) -> list[calls.Call]:
        return calls.read(self.collector.path)


def lasted(view: dict[str, Any]) -> float:
    """Seconds from a step's making to its end."""
    return (datetime.fromisoformat(view["ended"]) - datetime.fromisoformat(view["created"])).total_seconds()


def seconds(seconds: float) -> str:
    """For the table."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"
