"""The trace of a step in storage: what was asked, said and called, as far as the step has come."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from storage.references import Reference
from storage.store import ObjectStore
from storage.traces import TraceStore
from timestep.agents.durable.step import DurableStep
from timestep.agents.types import StepOutput

WAITING = "waiting"  # the status of a trace whose step waits for people


class StepTrace:
    """One step's trace, written anew at each of its stops; ``facts`` say what was asked, ``started`` when it began.

    The start is the step's, not the process's: it is part of the trace's key, which outlives both.
    """

    def __init__(self, store: ObjectStore, step: DurableStep, started: datetime, facts: dict[str, Any]) -> None:
        self._store, self._step, self._started = store, step, started
        self.content: dict[str, Any] = {"version": 1, "step_id": step.step_id, **facts, "started": started.isoformat()}

    async def completed(self, output: StepOutput) -> Reference:
        """Write it with what came of the step."""
        facts = output.model_dump(mode="json", include={"output", "usage", "model", "seconds"})
        return await self._write(output.status, None, **facts)

    async def waiting(self, reason: str) -> None:
        """Write it as far as it has come. What goes wrong there is noted: the step can wait all the same."""
        try:
            await self._write(WAITING, reason)
        except Exception as failure:
            self.content["error"] = f"{reason} The trace could not be written: {failure}"

    async def ended(self, error: BaseException) -> None:
        """Write it with the error that ended the step, which gets a note where the trace can't be written."""
        try:
            await self._write("failed" if isinstance(error, Exception) else "cancelled", f"{error}")
        except Exception as failure:
            error.add_note(f"Its trace could not be written: {failure}")

    async def _write(self, status: str, error: str | None, **facts: Any) -> Reference:
        step = self._step
        # Before the write, since a process that was superseded must not write over the trace of its successor.
        await step.ledger.check()
        self.content |= {
            "status": status,
            "error": error,
            **facts,
            "ended": datetime.now(UTC).isoformat(),
            "tools": step.tools,
            "messages": step.messages,
            "calls": [asdict(call) for call in step.calls],
        }
        agent = str(self.content["agent"])
        return await TraceStore(self._store).write(self.content, agent=agent, step_id=step.step_id, when=self._started)
