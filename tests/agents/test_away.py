"""What ends a step's process as crashed, to be started again, and what fails the step."""

import asyncio
import socket
from types import SimpleNamespace
from typing import NoReturn

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from timestep.agents.record import lease, units
from timestep.agents.record.away import DATABASE, PREFECT, is_away, outlived, prefect_reached
from timestep.agents.record.ledger import Begin, MemoryLedger
from timestep.agents.record.units import unit
from timestep.errors import ServiceUnavailableError, TimestepError


class Ended(BaseException):
    """Instead of the end of the process."""


@pytest.fixture(autouse=True)
def process_ends_by_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> NoReturn:
        raise Ended(code)

    monkeypatch.setattr(lease, "end_process", end)


def caused(cause: Exception) -> Exception:
    error = TimestepError("in other words")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ServiceUnavailableError(DATABASE, "postgresql://here"), True),
        (ServiceUnavailableError(PREFECT, "http://here"), True),
        (caused(ServiceUnavailableError(DATABASE, "postgresql://here")), True),
        (ServiceUnavailableError("model server", "http://there"), False),
        (httpx.ConnectError("of a tool, or of a model"), False),
        (ConnectionRefusedError(), False),
        (TimestepError("no"), False),
    ],
)
async def test_only_the_services_own_parts_are_outlived(error: Exception, away: bool) -> None:
    assert is_away(error) is away
    told = []

    async def last() -> None:
        told.append("last")
        await asyncio.sleep(60)

    with pytest.raises(Ended if away else type(error)) as caught:
        async with asyncio.timeout(20), outlived(last):
            raise error
    assert told == (["last"] if away else [])
    assert not away or caught.value.args == (1,)


async def test_what_a_tool_meets_is_the_steps_own_failure() -> None:
    async def call() -> NoReturn:
        raise ServiceUnavailableError(DATABASE, "postgresql://of-the-tool")

    for position, kind, away in (("a/0", "tool-call", False), ("session/add", "tool-call", True), ("a", "epoch", True)):
        with pytest.raises(ServiceUnavailableError) as caught:
            await unit(MemoryLedger(), Begin(position, kind, "name", "f"), call)
        assert is_away(caught.value) is away, position


@pytest.fixture
def nowhere() -> str:
    """URL at which nothing answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/api"


async def test_prefects_client_and_engine_are_understood(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceUnavailableError, match="No Prefect server"), prefect_reached():
        async with PrefectClient(nowhere) as client:
            await client.hello()

    async def engine(name: str) -> None:
        async with PrefectClient(nowhere) as client:
            await client.hello()

    monkeypatch.setitem(units._tasks, "tool-call", engine)
    monkeypatch.setattr("timestep.agents.record.units.FlowRunContext.get", lambda: SimpleNamespace(flow_run=None))
    monkeypatch.setattr(units, "PATIENCE", 0.0)
    with pytest.raises(ServiceUnavailableError) as caught:
        await unit(MemoryLedger(), Begin("a/0", "tool-call", "tool", "f"), engine)  # type: ignore[arg-type]
    assert is_away(caught.value)


async def test_what_prefect_refuses_is_no_outage() -> None:
    with pytest.raises(ValueError, match="no"), prefect_reached():
        raise ValueError("no")
