"""A unit: recorded when it is done, answered from the record, and the same request the same fingerprint."""

import asyncio
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import pytest
from pydantic import BaseModel

from timestep.agents.record import units
from timestep.agents.record.ledger import Begin, MemoryLedger, Recorded
from timestep.agents.record.units import fingerprint, unit

BEGIN = Begin("a/0", "tool-call", "tool", "f")


class Counter:
    """A call that counts how often it was made."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.count, self.error, self.seconds = 0, error, seconds

    async def __call__(self) -> Any:
        self.count += 1
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.count


async def test_a_finished_unit_is_not_called_again() -> None:
    ledger, call = MemoryLedger(), Counter()
    assert [await unit(ledger, BEGIN, call) for _ in range(3)] == [1, 1, 1]
    assert call.count == 1


async def test_a_failed_unit_is_called_again() -> None:
    ledger, call = MemoryLedger(), Counter(ValueError("no"))
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await unit(ledger, BEGIN, call)
    assert call.count == 2


async def test_what_was_done_is_recorded_though_nobody_waits_any_more() -> None:
    class Slow(MemoryLedger):
        async def finish(self, position: str, result: Any) -> None:
            waiting.set()
            await asyncio.sleep(0.05)
            await super().finish(position, result)

    ledger, waiting = Slow(), asyncio.Event()
    running = asyncio.create_task(unit(ledger, BEGIN, Counter()))
    await waiting.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.1)
    recorded = await ledger.begin(BEGIN)
    assert recorded is not None and recorded.result == 1


class Superseded(MemoryLedger):
    """The ledger of an attempt whose successor begins while the unit waits for ``seconds``."""

    seconds = 0.0

    async def begin(self, call: Begin) -> Recorded | None:
        begun = await super().begin(call)
        await asyncio.sleep(self.seconds)
        return begun

    async def check(self) -> None:
        raise asyncio.CancelledError("superseded")


async def test_one_that_was_stopped_before_its_call_looks_again_whether_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(units, "TRUST_SECONDS", 0.1)
    ledger, call = Superseded(), Counter()
    assert await unit(ledger, BEGIN, call) == 1, "at once, the record has just been asked"
    ledger.seconds = 0.2
    with pytest.raises(asyncio.CancelledError, match="superseded"):
        await unit(ledger, Begin("a/1", "tool-call", "tool", "f"), call)
    assert call.count == 1


def test_fingerprint_is_of_the_json_not_of_its_order() -> None:
    assert fingerprint({"a": 1, "b": [1, {"c": "é"}]}) == fingerprint({"b": [1, {"c": "é"}], "a": 1})
    assert fingerprint("1") != fingerprint(1)


def test_fingerprint_holds_no_address_of_a_live_object() -> None:
    class Item(BaseModel):
        at: datetime

    assert fingerprint([object(), PurePosixPath("a")]) == fingerprint([object(), PurePosixPath("a")])
    one, two = (Item(at=datetime(2026, 1, day, tzinfo=UTC)) for day in (1, 2))
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint("\ud800") != fingerprint("\ud801")


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prefect's task engine in front of the work, or behind it, fails as it does while its server is away."""
    when: list[str] = []

    async def engine(name: str) -> None:
        moment = when.pop(0) if when else ""
        if moment == "before":
            raise ConnectionError("Unable to acquire concurrency slots")
        await units._execute(name)
        if moment == "after":
            raise ConnectionError("The end can't be told")

    monkeypatch.setitem(units._tasks, "tool-call", engine)
    monkeypatch.setattr(units.FlowRunContext, "get", lambda: object())
    return when


@pytest.mark.parametrize("when", [["before", "before"], ["after"], ["before", "after"]])
async def test_a_prefect_that_is_away_fails_no_unit_and_repeats_none(refusing: list[str], when: list[str]) -> None:
    refusing[:] = when
    ledger, call = MemoryLedger(), Counter()
    assert await unit(ledger, BEGIN, call) == 1
    assert call.count == 1


async def test_the_error_of_a_call_is_the_error_of_its_unit(refusing: list[str]) -> None:
    call = Counter(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await unit(MemoryLedger(), BEGIN, call)
    assert call.count == 1
