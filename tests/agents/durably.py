"""Steps that are killed at a chosen operation of their ledger and started again, as other processes would."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents import Agent, ModelSettings, RunResult

from timestep.agents.durable.run import CallPolicy, DurableStep, run_durably
from timestep.agents.record.ledger import Begin, Ledger, MemoryLedger, Recorded
from timestep.agents.record.waiting import Decision, PendingCall


class Killed(BaseException):
    """The process ends here: nothing after it is recorded."""


class MortalLedger:
    """A ledger whose process is killed at its ``at``-th operation, which takes place before, or not any more."""

    def __init__(self, ledger: Ledger, at: int | None = None, after: bool = False) -> None:
        self._ledger, self._at, self._after = ledger, at, after
        self.step_id, self.operations = ledger.step_id, 0
        self.open: set[str] = set()

    async def begin(self, call: Begin) -> Recorded | None:
        dies = self._dies()
        if dies and not self._after:
            raise Killed
        recorded = await self._ledger.begin(call)
        if recorded is None:
            self.open.add(call.position)
        if dies:
            raise Killed
        return recorded

    async def finish(self, position: str, result: Any) -> None:
        dies = self._dies()
        if dies and not self._after:
            raise Killed
        await self._ledger.finish(position, result)
        self.open.discard(position)
        if dies:
            raise Killed

    def known(self, position: str) -> Recorded | None:
        return self._ledger.known(position)

    def cut(self) -> list[Recorded]:
        return self._ledger.cut()

    async def check(self) -> None:
        await self._ledger.check()

    def _dies(self) -> bool:
        self.operations += 1
        if self._at is not None and self.operations > self._at:
            raise Killed  # it is dead
        return self.operations == self._at


class MemoryAttempts:
    """Attempts of a step whose record is in memory."""

    def __init__(self) -> None:
        self._ledger = MemoryLedger("s")
        self._begun = False

    async def open(self) -> Ledger:
        """The record, as the next attempt finds it."""
        self._ledger._known.attempt += self._begun
        self._begun = True
        return self._ledger


class Told:
    """Keeps what a step tells of itself."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str | None, dict[str, Any]]] = []

    def publish(self, type: str, position: str | None = None, **data: Any) -> None:
        self.events.append((type, position, data))

    def of(self, type: str) -> list[dict[str, Any]]:
        return [data for kind, _, data in self.events if kind == type]


@dataclass
class People:
    """Decides as told by the name of the tool, and keeps what it was asked."""

    decisions: dict[str, Decision]
    asked: list[PendingCall] = field(default_factory=list)

    async def __call__(self, calls: list[PendingCall]) -> dict[str, Decision]:
        self.asked += calls
        return {call.position: self.decisions[call.tool] for call in calls}


def new_step(ledger: Ledger, **options: Any) -> DurableStep:
    """A step of scripted models."""
    return DurableStep("s", resolve=lambda agent: ("scripted", agent.model), ledger=ledger, **options)  # type: ignore[return-value,arg-type]


async def run(step: DurableStep, agent: Agent[Any], max_turns: int = 10, input: Any = "go") -> RunResult:
    return await run_durably(step, agent, input, context=None, max_turns=max_turns, settings=ModelSettings())


def executed(log: Path) -> Counter[str]:
    """How often each line was logged, without process ids."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.rsplit(" ", 1)[0] for line in lines)


def policy(**options: Any) -> CallPolicy:
    return CallPolicy(**options)
