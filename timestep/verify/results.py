"""What came of a suite: its checks, one by one, and what it measured."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["passed", "failed", "skipped", "excepted"]


@dataclass(frozen=True)
class Check:
    """One test of a suite; ``detail``: why it failed, was skipped, or may fail."""

    name: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """A suite's checks; ``figures``: what it measured, in the order in which it is shown."""

    suite: str
    checks: list[Check]
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def count(self, outcome: Outcome) -> int:
        """How many checks ended so."""
        return sum(check.outcome == outcome for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.outcome == "failed"]

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "suite": self.suite,
            "passed": self.count("passed"),
            "failed": self.count("failed"),
            "skipped": self.count("skipped"),
            "excepted": self.count("excepted"),
            "seconds": round(self.seconds, 1),
            "figures": self.figures,
            "checks": [asdict(check) for check in self.checks],
        }


def broken(suite: str, why: str) -> Result:
    """A suite that could not run: that is a failed check, not a skipped one."""
    return Result(suite, [Check("the suite runs", "failed", why)])
