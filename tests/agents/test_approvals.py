"""Decisions of people, on a real database: bound to the call, made once, repeated without harm, by default in time."""

import asyncio
import copy
import dataclasses
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from timestep.agents.ask import ask_user, is_question
from timestep.agents.record import approvals
from timestep.agents.record.approvals import Approvals, expire
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict
from timestep.database.engine import Database
from timestep.errors import ConflictError, NotFoundError, UsageError

APPROVE = Decision(verdict=Verdict.APPROVE)
REJECT = Decision(verdict=Verdict.REJECT, text="too dangerous")
AGAIN = Decision(verdict=Verdict.RUN_AGAIN)


def call(kind: Kind = Kind.APPROVAL, number: int = 0, **arguments: Any) -> PendingCall:
    return PendingCall(
        position=f"cleaner/0/{number}",
        kind=kind,
        call_id=f"call_{number}",
        agent="cleaner",
        tool="ask_user" if kind is Kind.QUESTION else "delete",
        arguments=json.dumps(arguments or {"path": "/tmp/x"}),
    )


async def step(database: Database, step_id: str = "s") -> Approvals:
    async with database.session() as session:
        await session.execute(text("insert into steps (id, attempt) values (:id, 1)"), {"id": step_id})
    return Approvals(database, step_id)


async def consume(database: Database, kind: Kind) -> None:
    """What the beginning of the call's unit does."""
    async with database.session() as session:
        consumed = text("update approvals set status = 'consumed', consumed_at = now() where kind = :kind")
        await session.execute(consumed, {"kind": kind.value})


async def test_a_call_is_pending_until_it_is_decided(database: Database) -> None:
    asked = await step(database)
    calls = [call(number=0), call(number=1)]
    await asked.ask(calls)
    await asked.ask(calls)
    assert await asked.pending() == calls
    assert await asked.decisions(calls) == {}
    await asked.decide("call_1", REJECT, by="one")
    await asked.decide("cleaner/0/0", APPROVE, by="two")
    assert await asked.pending() == []
    assert await asked.decisions(calls) == {"cleaner/0/0": APPROVE, "cleaner/0/1": REJECT}
    first, second = await asked.all()
    assert (first.decided_by, second.decided_by) == ("two", "one")
    assert second.decision == REJECT


async def test_of_two_people_at_once_one_wins_and_the_other_is_told(database: Database) -> None:
    asked = await step(database)
    for number in range(8):
        await asked.ask([call(number=number)])
        results = await asyncio.gather(
            asked.decide(f"call_{number}", APPROVE, by="one"),
            asked.decide(f"call_{number}", REJECT, by="two"),
            return_exceptions=True,
        )
        (lost,) = [result for result in results if result is not None]
        assert isinstance(lost, ConflictError)
        winner = "approved by one" if results[0] is None else "rejected ('too dangerous') by two"
        assert f"Call 'call_{number}' (delete) was {winner} at 2" in str(lost)


async def test_the_same_decision_twice_is_one_even_after_it_was_consumed(database: Database) -> None:
    asked = await step(database)
    await asked.ask([call()])
    await asyncio.gather(*(asked.decide("call_0", APPROVE, by=f"{n}") for n in range(5)))
    await consume(database, Kind.APPROVAL)
    await asked.decide("call_0", APPROVE, by="late")
    assert await asked.decisions([call()]) == {"cleaner/0/0": APPROVE}
    with pytest.raises(ConflictError, match="was approved by"):
        await asked.decide("call_0", REJECT, by="late")


async def test_a_decision_counts_for_its_arguments_only(database: Database) -> None:
    asked = await step(database)
    await asked.ask([call(path="/tmp/a")])
    await asked.decide("call_0", APPROVE, by="one")
    # Other spelling, same arguments.
    same = call().model_copy(update={"arguments": '{ "path":  "/tmp/a" }'})
    assert await asked.decisions([same]) == {"cleaner/0/0": APPROVE}
    other = call(path="/")
    assert await asked.decisions([other]) == {}
    await asked.ask([other])
    assert await asked.pending() == [other]


async def test_a_call_cut_once_more_is_asked_for_once_more(database: Database) -> None:
    asked = await step(database)
    await asked.ask([call()])
    await asked.decide("call_0", APPROVE, by="one")
    await consume(database, Kind.APPROVAL)
    cut = call(Kind.CUT)
    await asked.ask([cut])
    # The id stands for two calls now: the verdict says which is meant.
    await asked.decide("call_0", AGAIN, by="one")
    await asked.ask([cut])
    assert await asked.decisions([cut]) == {"cleaner/0/0": AGAIN}, "decided, and not acted upon yet"
    await consume(database, Kind.CUT)
    await asked.ask([cut])
    assert await asked.pending() == [cut]


async def test_a_result_that_a_person_gave_is_not_asked_for_again(database: Database) -> None:
    asked, given = await step(database), Decision(verdict=Verdict.RESULT, text="paid")
    await asked.ask([call(Kind.CUT)])
    await asked.decide("call_0", given, by="one")
    await consume(database, Kind.CUT)  # and killed before it was recorded as the call's
    await asked.ask([call(Kind.CUT)])
    assert await asked.pending() == []
    assert await asked.decisions([call(Kind.CUT)]) == {"cleaner/0/0": given}


async def test_a_decision_to_fail_counts_until_it_has_failed_the_step(database: Database) -> None:
    asked, fail = await step(database), Decision(verdict=Verdict.FAIL, text="no")
    await asked.ask([call(Kind.CUT)])
    assert not await asked.failing()
    await asked.decide("call_0", fail, by="one")
    await asked.ask([call(Kind.CUT)])
    assert await asked.decisions([call(Kind.CUT)]) == {"cleaner/0/0": fail} and await asked.failing()
    await asked.failed()
    await asked.ask([call(Kind.CUT)])
    assert await asked.pending() == [call(Kind.CUT)] and not await asked.failing()


async def test_what_fits_no_call_is_refused_in_words(database: Database) -> None:
    asked = await step(database)
    await asked.ask([call(number=0), call(Kind.QUESTION, number=1, question="Where?"), call(Kind.CUT, number=2)])
    with pytest.raises(NotFoundError, match=r"No call 'call_9'\. .*Calls: call_0, call_1, call_2"):
        await asked.decide("call_9", APPROVE, by="one")
    with pytest.raises(UsageError, match=r"'call_1' \(ask_user\) can't be decided by 'approve', only by 'answer'"):
        await asked.decide("call_1", APPROVE, by="one")
    with pytest.raises(UsageError, match="'answer' needs a text"):
        await asked.decide("call_1", Decision(verdict=Verdict.ANSWER, text=" "), by="one")
    with pytest.raises(UsageError, match="'run_again' or 'result' or 'fail'"):
        await asked.decide("call_2", REJECT, by="one")
    assert len(await asked.pending()) == 3


async def test_of_calls_with_one_id_none_is_taken_for_another(database: Database) -> None:
    asked = await step(database)
    calls = [call(number=n, path=path).model_copy(update={"call_id": "call_7"}) for n, path in enumerate("aba")]
    await asked.ask(calls)
    with pytest.raises(UsageError, match=r"3 calls that wait have the id 'call_7'.*'cleaner/0/0' or 'cleaner/0/1' or"):
        await asked.decide("call_7", APPROVE, by="one")
    assert await asked.pending() == calls
    assert approvals.names([*calls, call()]) == ["cleaner/0/0", "cleaner/0/1", "cleaner/0/2", "call_0"]
    rows = await asked.all()
    assert approvals.meant(rows, "call_7", Verdict.APPROVE, calls[1].digest).position == "cleaner/0/1"
    with pytest.raises(UsageError, match="2 calls that wait"):
        approvals.meant(rows, "call_7", Verdict.APPROVE, calls[0].digest)
    await asked.decide("cleaner/0/1", APPROVE, by="one")
    assert await asked.pending() == [calls[0], calls[2]]
    # The same again, with its digest, is not taken for a decision of the next call with this id.
    again = approvals.meant(await asked.all(), "call_7", Verdict.APPROVE, calls[1].digest)
    await asked.decide(again, APPROVE, by="one")
    assert await asked.pending() == [calls[0], calls[2]]


async def test_a_decision_of_a_call_that_has_changed_meanwhile_is_refused(database: Database) -> None:
    asked = await step(database)
    await asked.ask([call(path="/tmp/a")])
    await asked.ask([call(path="/")])
    with pytest.raises(ConflictError, match="it is now delete"):
        await asked.decide(call(path="/tmp/a"), APPROVE, by="one")
    assert await asked.pending() == [call(path="/")]


async def test_any_name_of_who_decides_can_be_kept(database: Database) -> None:
    asked = await step(database)
    await asked.ask([call()])
    await asked.decide("call_0", REJECT, by="a\x00b\ud800")
    assert (await asked.all())[0].decided_by == "a�b?"


async def test_always_and_text_are_kept_where_they_mean_something(database: Database) -> None:
    asked = await step(database)
    await asked.ask([call(number=0), call(Kind.CUT, number=1)])
    await asked.decide("call_0", Decision(verdict=Verdict.APPROVE, text="fine", always=True), by="one")
    await asked.decide("call_1", Decision(verdict=Verdict.RESULT, text="a\x00b", always=True), by="one")
    decided = await asked.decisions([call(number=0), call(Kind.CUT, number=1)])
    assert decided["cleaner/0/0"] == Decision(verdict=Verdict.APPROVE, always=True)
    assert decided["cleaner/0/1"] == Decision(verdict=Verdict.RESULT, text="a�b")


async def test_what_waits_past_its_deadline_is_decided_by_default(database: Database) -> None:
    past, future = timedelta(seconds=-1), timedelta(hours=1)
    one, two, three = [await step(database, name) for name in ("one", "two", "three")]
    calls = [call(number=0), call(Kind.QUESTION, number=1, question="Where?"), call(Kind.CUT, number=2)]
    await one.ask(calls, past, Verdict.REJECT)
    await two.ask([call()], past, Verdict.APPROVE)
    await three.ask([call()], future, Verdict.APPROVE)
    await three.ask([call()], past, Verdict.APPROVE)  # asked already: its deadline stays
    assert await expire(database) == ["one", "two"]
    assert await expire(database) == []
    assert [c.kind for c in await one.pending()] == [Kind.CUT], "no default knows whether a cut call has run"
    decided = await one.decisions(calls)
    assert decided["cleaner/0/0"] == Decision(verdict=Verdict.REJECT, text="Nobody decided before the deadline.")
    assert decided["cleaner/0/1"] == Decision(verdict=Verdict.ANSWER, text="Nobody answered before the deadline.")
    assert await two.decisions([call()]) == {"cleaner/0/0": APPROVE}
    assert await three.pending() == [call()]
    assert await approvals.decided(database, ["one", "two", "three", "four"]) == ["two"]


async def test_a_superseded_process_asks_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    class Superseded:
        attempt = 1

        def superseded(self) -> None:
            raise Ended

    await step(database)
    held: Any = Superseded()
    mine = Approvals(database, "s", held)
    await mine.ask([call(number=0)])
    async with database.session() as session:
        await session.execute(text("update steps set attempt = 2"))
    with pytest.raises(Ended):
        await mine.ask([call(number=1)])
    assert await mine.pending() == [call(number=0)]


def test_ask_user_stays_a_question_when_it_is_copied() -> None:
    assert is_question(copy.copy(ask_user)) and is_question(dataclasses.replace(ask_user, name="ask_boss"))
    assert not is_question(Path)  # type: ignore[arg-type]
    assert ask_user.needs_approval is True
