"""The calls that the agents of the scenarios really made, by the lines that they sent to the collector."""

import json
from dataclasses import dataclass
from pathlib import Path

from tests.k3s.release import Release

# Of each agent: its model calls (agent/turn) and tool calls (agent/turn/index).
EXPECTED = {
    "worker": "worker/0 worker/0/0 worker/1 worker/1/0 worker/1/1 worker/2 worker/2/0 worker/3 worker/3/0 worker/4",
    "careful": "careful/0 careful/0/0 careful/1 careful/1/0 careful/2",
    "quick": "quick/0",
}


@dataclass(frozen=True)
class Call:
    """A moment of a call: it began, or it ended."""

    at: float
    tag: str
    call: str
    moment: str
    pod: str


def read(path: Path) -> list[Call]:
    """All of them so far."""
    # A line that is being written has no end yet.
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [Call(**json.loads(line)) for line in lines]


def wrong(release: Release, calls: list[Call], steps: dict[str, str], agent: str) -> tuple[str, int]:
    """What was lost or repeated in these steps (id -> tag); and how many calls ran again since they had been cut.

    What had been finished is said by the service's record: the moment at which a call's unit was written.
    """
    rows = release.fetch("select step_id, position, finished_at from units where step_id = any($1)", list(steps))
    finished = {(row["step_id"], row["position"]): row["finished_at"] for row in rows}
    faults, cut = [], 0
    for step, tag in steps.items():
        begun: dict[str, list[float]] = {}
        for call in calls:
            if call.tag == tag and call.moment == "begun":
                begun.setdefault(call.call, []).append(call.at)
        expected = set(EXPECTED[agent].split())
        if set(begun) != expected:
            faults.append(f"{tag}: calls {sorted(set(begun) ^ expected)} are missing or too many")
        for name, times in begun.items():
            end = finished.get((step, name))
            if end is None:
                faults.append(f"{tag}: {name} has no record")
                continue
            again = sum(at > end.timestamp() for at in times)
            cut += len(times) - 1 - again
            if again:
                faults.append(f"{tag}: {name} was repeated {again} times")
    return "; ".join(faults), cut
