"""A session's conversation and its queue, on a real PostgreSQL; steps as leases, as ledgers see them."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import text

from storage.store import ObjectStore
from tests.conftest import ROOT, environment
from timestep.agents.record import lease, sessions
from timestep.agents.record.lease import Lease
from timestep.agents.record.ledger import DatabaseLedger, MemoryLedger
from timestep.agents.record.sessions import NotYourTurnError, SessionTurn, heads, leave, next_in_line, open_session
from timestep.agents.record.waiting import Kind, PendingCall
from timestep.database.engine import Database
from timestep.errors import UsageError

# A lease's thread, whose database the next test drops, finds itself superseded.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class EndedError(BaseException):
    """Instead of the end of this process."""


def _end(_: int) -> NoReturn:
    raise EndedError


# For good: the threads live as long as the tests' process.
lease.end_process = _end


class Steps:
    """Steps of one session, all held by this process."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.store = database, ObjectStore.open(f"local://{folder}")
        self.woken: list[str] = []

    async def turn(
        self, step_id: str, session_id: str | None = "talk", patience: float = 0.0, killed_at_finish: str = ""
    ) -> SessionTurn:
        held = await Lease.acquire(self.database, step_id)
        ledger = await DatabaseLedger.open(self.database, held, self.store)
        finish = ledger.finish

        async def killed(position: str, result: Any) -> None:
            if position == killed_at_finish:
                raise Suspended
            await finish(position, result)

        ledger.finish = killed  # type: ignore[method-assign]
        return SessionTurn(self.database, session_id, ledger, wake=self.wake, patience=patience)

    async def wake(self, step_id: str) -> None:
        self.woken.append(step_id)

    async def items(self, session_id: str = "talk") -> list[Any]:
        return [item["content"] for item in await (await open_session(self.database, session_id)).get_items()]  # type: ignore[typeddict-item]


@pytest.fixture
async def steps(database: Database, tmp_path: Path) -> AsyncIterator[Steps]:
    yield Steps(database, tmp_path)


def said(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


async def test_a_session_goes_on_where_the_last_step_left_it(steps: Steps) -> None:
    for number in range(3):
        async with await steps.turn(f"s{number}") as turn:
            assert [item["content"] for item in await turn.history()] == [f"said {n}" for n in range(number)]
            await turn.add(said(f"said {number}"))
    assert await heads(steps.database) == []


async def test_steps_at_the_same_time_take_turns_in_the_order_of_arrival(steps: Steps) -> None:
    async def step(number: int) -> None:
        async with await steps.turn(f"t{number}", patience=30) as turn:
            before = await turn.history()
            await asyncio.sleep(0.1)
            await turn.add([*said(f"{number} asks after {len(before)}"), *said(f"{number} answers")])

    first = asyncio.create_task(step(0))
    while await next_in_line(steps.database, "talk") is None:
        await asyncio.sleep(0.05)
    await asyncio.gather(first, *(step(number) for number in range(1, 4)))
    found = await steps.items()
    assert found[0] == "0 asks after 0"
    for at in range(0, 8, 2):
        number = found[at].split()[0]
        assert found[at : at + 2] == [f"{number} asks after {at}", f"{number} answers"]


async def test_other_sessions_do_not_wait(steps: Steps) -> None:
    async with await steps.turn("a1"), await steps.turn("b1", "other"), await steps.turn("c1", None) as none:
        assert await none.history() == []
        await none.add(said("nowhere"))
    assert await steps.items() == []


async def test_a_step_behind_one_that_waits_for_a_person_holds_no_worker(steps: Steps) -> None:
    with pytest.raises(Suspended):
        async with await steps.turn("p1"):
            await pend(steps.database, "p1")
            raise Suspended
    with pytest.raises(NotYourTurnError, match="'p2' waits for step 'p1' of session 'talk'"):
        async with await steps.turn("p2", patience=60):
            pytest.fail("it is not its turn")
    (head,) = await heads(steps.database)
    assert (head.step_id, head.waits) == ("p1", True)

    # The person decides; the step runs again, ends, and the one behind it is woken and has its turn.
    async with steps.database.session() as session:
        await session.execute(text("update approvals set status = 'decided'"))
    async with await steps.turn("p1"):
        pass
    assert steps.woken == ["p2"]
    async with await steps.turn("p2"):
        pass


async def test_a_step_behind_one_whose_process_is_gone_holds_no_worker(steps: Steps) -> None:
    await sessions.join(steps.database, "talk", "gone")
    with pytest.raises(NotYourTurnError, match="'gone'"):
        async with await steps.turn("g2", patience=60):
            pytest.fail("it is not its turn")
    assert await leave(steps.database, "gone") == "g2"
    assert await leave(steps.database, "gone") is None


async def test_patience_ends_while_the_step_ahead_runs(steps: Steps) -> None:
    async with await steps.turn("r1"):
        waiting = asyncio.create_task((await steps.turn("r2", patience=0.8)).__aenter__())
        done, _ = await asyncio.wait([waiting], timeout=0.4)
        assert not done
        with pytest.raises(NotYourTurnError):
            await waiting


async def test_a_failed_step_gives_its_place_up_and_a_cancelled_one_keeps_it(steps: Steps) -> None:
    with pytest.raises(ValueError, match="failed"):
        async with await steps.turn("f1"):
            raise ValueError("failed")
    assert await heads(steps.database) == []
    with pytest.raises(asyncio.CancelledError):
        async with await steps.turn("f2"):
            raise asyncio.CancelledError
    assert [head.step_id for head in await heads(steps.database)] == ["f2"]


async def test_a_step_run_again_reads_the_same_history_and_adds_nothing_twice(steps: Steps) -> None:
    async with await steps.turn("k0") as turn:
        await turn.add(said("before"))
    with pytest.raises(Suspended):
        async with await steps.turn("k1") as turn:
            await turn.history()
            raise Suspended
    # Killed after the session's commit, before the unit was recorded.
    with pytest.raises(Suspended):
        async with await steps.turn("k1", killed_at_finish="session/add") as turn:
            await turn.history()
            await turn.add(said("hello"))
    assert await steps.items() == ["before", "hello"]
    async with await steps.turn("k1") as turn:
        assert [item["content"] for item in await turn.history()] == ["before"]
        await turn.add(said("hello"))
    assert await steps.items() == ["before", "hello"]

    # And killed after that: it is done with the session, whoever has come since.
    await sessions.join(steps.database, "talk", "later")
    async with await steps.turn("k1") as turn:
        assert [item["content"] for item in await turn.history()] == ["before"]
        await turn.add(said("hello"))
    assert await steps.items() == ["before", "hello"]


async def test_a_step_that_says_what_was_said_before_adds_it(steps: Steps) -> None:
    for name in ("e1", "e2"):
        async with await steps.turn(name) as turn:
            await turn.history()
            await turn.add(said("hello"))
    assert await steps.items() == ["hello", "hello"]


async def test_equal_items_that_came_since_are_no_reason_to_add_none(steps: Steps) -> None:
    async with await steps.turn("q1") as turn:
        await turn.history()
        both = [*said("hello"), *said("who\0 are you?")]
        await (await open_session(steps.database, "talk")).add_items(both)
        await turn.add(both)
    assert await steps.items() == ["hello", "who\0 are you?"] * 2


async def test_a_process_superseded_before_its_write_adds_nothing(steps: Steps) -> None:
    def superseded_now(*_: Any, **__: Any) -> Any:
        """After the ledger's last look, before the session's write."""
        monkeypatch.undo()
        return supersede_and_connect()

    async def supersede_and_connect() -> Any:
        async with steps.database.session() as session:
            await session.execute(text("update steps set attempt = attempt + 1 where id = 'w1'"))
        return await steps.database.connect()

    with pytest.raises(EndedError):
        async with await steps.turn("w1") as turn:
            await turn.history()
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(steps.database, "connect", superseded_now)
                await turn.add(said("late"))
    assert await steps.items() == []


async def test_an_empty_session_id_names_no_session(steps: Steps) -> None:
    async with await steps.turn("n1", ""), await steps.turn("n2", "") as turn:
        await turn.add(said("nowhere"))
        assert await turn.history() == []
    assert await heads(steps.database) == []
    assert await steps.items("") == []
    SessionTurn(None, "", MemoryLedger())


async def test_a_superseded_process_keeps_its_hands_off_the_queue(steps: Steps) -> None:
    with pytest.raises(EndedError):
        async with await steps.turn("x1"):
            async with steps.database.session() as session:
                await session.execute(text("update steps set attempt = attempt + 1 where id = 'x1'"))
            raise ValueError("late")
    assert [head.step_id for head in await heads(steps.database)] == ["x1"]


async def test_a_session_needs_a_database() -> None:
    with pytest.raises(UsageError, match="A session needs the service's database"):
        SessionTurn(None, "talk", MemoryLedger())


FIRST_USE = """
import asyncio, sys
from timestep.agents.record.sessions import open_session
from timestep.database.engine import Database
async def main(url):
    database = Database(url)
    session = await open_session(database, "talk")
    await session.add_items([{"role": "user", "content": "hi"}])
    await database.close()
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.long
async def test_processes_that_use_the_first_session_together_make_its_tables_once(
    steps: Steps,
    postgres_url: str,
) -> None:
    command = [sys.executable, "-c", FIRST_USE, postgres_url]
    started = [
        await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in started:
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    assert await steps.items() == ["hi"] * 3


class Suspended(BaseException):
    """As Prefect ends a suspended flow's process."""


async def pend(database: Database, step_id: str) -> None:
    """The step has asked for an approval."""
    call = PendingCall(position="a/0/0", kind=Kind.APPROVAL, call_id="c", agent="a", tool="t", arguments="{}")
    async with database.session() as session:
        await session.execute(
            text(
                "insert into approvals (step_id, position, kind, call_id, agent, tool, arguments, digest) "
                "values (:step_id, :position, :kind, :call_id, :agent, :tool, :arguments, :digest)"
            ),
            {"step_id": step_id, "digest": call.digest, **call.model_dump(mode="json")},
        )
