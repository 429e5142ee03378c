"""Tool calls as units: keys, timeouts, retries, what must not run twice, and what people decide."""

import asyncio
import copy
import dataclasses
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    FunctionTool,
    ModelRetrySettings,
    ModelSettings,
    RunContextWrapper,
    Runner,
    ToolTimeoutError,
    function_tool,
)

from storage.store import ObjectStore
from tests.agents.durable_agents import NamedModel, approved_below, remember
from tests.agents.durably import Killed, MemoryAttempts, MortalLedger, People, Told, executed, new_step, run
from tests.scripted import Plan, PlannedModel
from timestep.agents.ask import ask_user
from timestep.agents.durable.declarations import retries, runs_once
from timestep.agents.durable.run import CallPolicy, idempotent, once, run_durably
from timestep.agents.durable.step import Run
from timestep.agents.durable.threads import leave_hung_calls_behind
from timestep.agents.durable.tool_calls import durable_tool
from timestep.agents.record.ledger import MemoryLedger
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict
from timestep.agents.tools import StepContext, idempotency_key
from timestep.errors import TimestepError, UnitChangedError, UsageError

YES, NO = Decision(verdict=Verdict.APPROVE), Decision(verdict=Verdict.REJECT, text="too much")


def caller(*tools: FunctionTool, arguments: dict[str, Any] | None = None, times: int = 1) -> Agent[Any]:
    """An agent that calls each tool once, all at the same time, and again as often as asked for."""
    calls = [(tool.name, arguments or {}) for tool in tools]
    return Agent(name="a", model=PlannedModel([*[calls] * times, "done"]), tools=list(tools))


def output_of(step: Any, index: int = -1) -> str:
    """What the model was told by a tool, in the root run."""
    return str([message["content"] for message in step.messages if message["role"] == "tool"][index])


def test_declarations_survive_copies_and_leave_the_tool_as_it_is(tmp_path: Path) -> None:
    plain = remember(tmp_path / "log")
    for make in (copy.copy, dataclasses.replace):
        declared = make(idempotent(once(plain), retries=2))
        assert runs_once(declared) and retries(declared) == 2 and declared.name == plain.name
    assert not runs_once(plain) and retries(plain) == 0
    assert isinstance(once(ask_user), type(ask_user))


async def test_a_tool_reads_its_key_which_is_the_same_in_the_next_process(tmp_path: Path) -> None:
    keys: list[str] = []

    @function_tool
    def first(context: RunContextWrapper[StepContext]) -> str:
        keys.append(context.context.idempotency_key)
        raise Killed  # in the middle

    @function_tool
    async def second() -> str:
        keys.append(idempotency_key())
        raise Killed

    attempts = MemoryAttempts()
    context = StepContext("s", "a", ObjectStore.open(f"local://{tmp_path}"), "w")
    for tool in (first, second):
        for _ in range(2):
            with pytest.raises(Killed):
                step = new_step(await attempts.open() if tool is first else MemoryLedger("other"))
                step.step_id = step.ledger.step_id
                await run_durably(step, caller(tool), "go", context=context, max_turns=3, settings=ModelSettings())
    assert keys[0] == keys[1] and keys[2] == keys[3]
    assert keys[0] != keys[2] and len(keys[0]) == 64
    with pytest.raises(UsageError, match="none is running"):
        idempotency_key()


async def test_two_calls_of_one_response_have_keys_of_their_own() -> None:
    keys: set[str] = set()

    @function_tool
    async def note() -> str:
        keys.add(idempotency_key())
        return "noted"

    await run(new_step(MemoryLedger("s")), caller(note, note))
    assert len(keys) == 2


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_hung_tool_is_ended_by_its_timeout_and_the_model_is_told(kind: str) -> None:
    over = threading.Event()

    @function_tool
    def hung() -> str:
        over.wait(20)
        return "never"

    @function_tool(name_override="hung")
    async def hung_async() -> str:
        await asyncio.sleep(20)
        return "never"

    attempts = MemoryAttempts()
    agent = caller(hung if kind == "sync" else hung_async)
    step = new_step(await attempts.open(), policy=CallPolicy(tool_timeout=0.2))
    try:
        assert (await run(step, agent)).final_output == "done"
    finally:
        over.set()
    assert output_of(step) == "Tool 'hung' timed out after 0.2 seconds."
    # That it was late is on the record: the answer doesn't change when the step starts again.
    again = new_step(await attempts.open(), attempt=2)
    await run(again, agent)
    assert output_of(again) == output_of(step)


async def test_tools_that_hang_leave_room_for_others() -> None:
    over = threading.Event()

    @function_tool
    def hung() -> str:
        over.wait(20)
        return "never"

    @function_tool
    def sound() -> str:
        return "heard"

    leave_hung_calls_behind()
    step = new_step(MemoryLedger("s"), policy=CallPolicy(tool_timeout=0.5))
    try:
        await run(step, caller(*[hung] * 40, sound))
        assert await asyncio.to_thread(str, "stored") == "stored"
    finally:
        over.set()
    assert output_of(step) == "heard"


async def test_a_tools_own_timeout_and_its_behaviour_win() -> None:
    @function_tool(timeout=0.2, timeout_behavior="raise_exception")
    async def hung() -> str:
        await asyncio.sleep(20)
        return "never"

    with pytest.raises(ToolTimeoutError):
        await run(new_step(MemoryLedger("s"), policy=CallPolicy(tool_timeout=60)), caller(hung))

    @function_tool(timeout=0.2, timeout_error_function=lambda context, error: f"late by {error}")
    async def slow() -> str:
        await asyncio.sleep(20)
        return "never"

    step = new_step(MemoryLedger("s"))
    await run(step, caller(slow))
    assert output_of(step).startswith("late by Tool 'slow' timed out")


async def test_a_cancelled_step_cancels_its_tools_and_records_nothing() -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    @function_tool
    async def slow() -> str:
        started.set()
        try:
            await asyncio.sleep(20)
        finally:
            cleaned.set()
        return "never"

    ledger = MemoryLedger("s")
    running = asyncio.create_task(run(new_step(ledger, policy=CallPolicy(tool_timeout=60)), caller(slow)))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(2):
        await cleaned.wait()
    unit = ledger.known("a/0/0")
    assert unit is not None and not unit.finished


async def test_only_an_idempotent_tool_is_tried_again() -> None:
    tries: list[str] = []

    @function_tool
    def flaky() -> str:
        tries.append(idempotency_key())
        if len(tries) < 3:
            raise OSError("not now")
        return "now"

    step = new_step(MemoryLedger("s"))
    await run(step, caller(idempotent(flaky)))
    assert output_of(step) == "now" and len(tries) == 3 and len(set(tries)) == 1
    tries.clear()
    step = new_step(MemoryLedger("s"))
    await run(step, caller(flaky))
    assert "error occurred" in output_of(step) and len(tries) == 1
    tries.clear()
    step = new_step(MemoryLedger("s"))
    await run(step, caller(idempotent(flaky, retries=1)))
    # Told as the author wants failures told, once the tries are used up.
    assert "error occurred" in output_of(step) and len(tries) == 2


async def test_runs_within_a_tool_that_is_tried_again_are_not_repeated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    inner = Agent(name="inner", model=NamedModel("inner", ["said"], log))
    tries: list[int] = []

    @function_tool
    async def consult() -> str:
        said = (await Runner.run(inner, "go")).final_output
        tries.append(1)
        if len(tries) == 1:
            raise OSError("not now")
        return str(said)

    step = new_step(MemoryLedger("s"))
    await run(step, caller(idempotent(consult)))
    assert output_of(step) == "said" and len(tries) == 2
    assert executed(log) == {"model inner after 0": 1}
    assert step.usage().requests == 3


@pytest.mark.parametrize(
    ("output", "expected"),
    [(5, "5"), (None, "None"), ([1, 2], "[1, 2]"), ((1, 2), "(1, 2)"), ({"a": 1}, "{'a': 1}"), ({1: 2}, "{1: 2}")],
)
async def test_the_model_reads_the_same_of_the_record_as_of_the_tool(output: Any, expected: str) -> None:
    tool = function_tool(lambda: output, name_override="measure")
    attempts = MemoryAttempts()
    read = []
    for attempt in (1, 2):
        result = await run(new_step(await attempts.open(), attempt=attempt), caller(tool))
        outputs = [item.to_input_item() for item in result.new_items if item.type == "tool_call_output_item"]
        read.append([str(output["output"]) for output in outputs])  # type: ignore[typeddict-item]
    assert read == [[expected], [expected]]


# What must not run twice.


class Cut:
    """A step with one call that was cut in the middle by a crash."""

    def __init__(self, log: Path, tool: FunctionTool) -> None:
        self.log, self.attempts, self.tool = log, MemoryAttempts(), tool
        self.agent = caller(tool, arguments={"text": "x"})

    async def begin(self, people: Any = None) -> None:
        # Operation 4 is the end of the tool's call, after the model's call began and ended and the tool's began.
        mortal = MortalLedger(await self.attempts.open(), at=4)
        with pytest.raises(Killed):
            await run(new_step(mortal, **({"decide": people} if people else {})), self.agent)
        assert mortal.open == {"a/0/0"}

    async def resume(self, people: Any, **options: Any) -> Any:
        step = new_step(await self.attempts.open(), attempt=2, decide=people, **options)
        await run(step, self.agent)
        return step


def crew(decision: Decision, approval: Decision = YES) -> Any:
    asked: list[PendingCall] = []

    async def decide(calls: list[PendingCall]) -> dict[str, Decision]:
        asked.extend(calls)
        return {call.position: decision if call.kind is Kind.CUT else approval for call in calls}

    decide.asked = asked  # type: ignore[attr-defined]
    return decide


@pytest.fixture(params=["once", "approved"])
async def cut(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cut]:
    log = tmp_path / "log"
    tool = once(remember(log)) if request.param == "once" else remember(log, needs_approval=True)
    cut = Cut(log, tool)
    await cut.begin(crew(YES))
    assert executed(log) == {"tool x": 1}
    yield cut


async def test_a_cut_call_runs_again_only_where_a_person_says_so(cut: Cut) -> None:
    decide = crew(Decision(verdict=Verdict.RUN_AGAIN))
    step = await cut.resume(decide)
    assert executed(cut.log) == {"tool x": 2}
    assert output_of(step) == "remembered x"
    asked = [call for call in decide.asked if call.kind is Kind.CUT]
    assert [(call.position, call.tool, call.agent) for call in asked] == [("a/0/0", "remember", "a")]


async def test_a_cut_call_gets_the_result_that_a_person_gives(cut: Cut) -> None:
    step = await cut.resume(crew(Decision(verdict=Verdict.RESULT, text="it had worked")))
    assert executed(cut.log) == {"tool x": 1}
    assert output_of(step) == "it had worked"
    # And keeps it.
    again = new_step(await cut.attempts.open(), attempt=3, decide=crew(Decision(verdict=Verdict.FAIL)))
    await run(again, cut.agent)
    assert output_of(again) == "it had worked"


async def test_a_cut_call_that_was_decided_to_fail_fails_the_step(cut: Cut) -> None:
    with pytest.raises(TimestepError, match=r"'remember' at 'a/0/0' was cut, and decided to fail: no way\."):
        await cut.resume(crew(Decision(verdict=Verdict.FAIL, text="no way")))
    assert executed(cut.log) == {"tool x": 1}


async def test_a_decision_made_up_front_is_not_asked_for_again(cut: Cut) -> None:
    decide = crew(NO)
    await cut.resume(
        decide, decisions={"a/0/0": Decision(verdict=Verdict.RUN_AGAIN)}
    ) if cut.tool.needs_approval is False else None
    assert [call for call in decide.asked if call.kind is Kind.CUT] == []


async def test_an_ordinary_cut_call_runs_again_by_itself(tmp_path: Path) -> None:
    log = tmp_path / "log"
    cut = Cut(log, remember(log))
    await cut.begin()
    decide = crew(NO)
    await cut.resume(decide)
    assert executed(log) == {"tool x": 2} and decide.asked == []


async def test_a_call_that_its_policy_let_pass_is_an_ordinary_one(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def large(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
        return len(arguments["text"]) > 3

    tool = remember(log, needs_approval=large)
    cut = Cut(log, tool)
    await cut.begin()
    decide = crew(NO)
    await cut.resume(decide)
    assert executed(log) == {"tool x": 2} and decide.asked == []
    cut.agent = caller(tool, arguments={"text": "large"})
    cut.attempts = MemoryAttempts()
    await cut.begin(decide := crew(NO, YES))
    assert [call.kind for call in decide.asked] == [Kind.APPROVAL]
    step = await cut.resume(crew(Decision(verdict=Verdict.RESULT, text="given")))
    assert output_of(step) == "given"


async def test_what_a_policy_let_pass_is_no_later_call_with_its_id(tmp_path: Path) -> None:
    async def large(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
        return len(arguments["text"]) > 3

    # The SDK's runner refuses an id that comes again; other engines don't.
    of = Run(new_step(MemoryLedger("s")))
    tool: Any = durable_tool(remember(tmp_path / "log", needs_approval=large), of)
    assert not await tool.needs_approval(None, {"text": "x"}, "call_1") and of.unattended == {"call_1"}
    assert await tool.needs_approval(None, {"text": "large"}, "call_1") and of.unattended == set()


# What people decide.


async def test_a_rejected_call_does_not_run_and_the_model_reads_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    people = People({"remember": NO})
    step = new_step(MemoryLedger("s"), decide=people)
    result = await run(step, caller(remember(log, needs_approval=True), arguments={"text": "x"}))
    assert executed(log) == {}
    assert "A person rejected this call: too much" in str(result.new_items[-2].to_input_item())
    (asked,) = people.asked
    assert (asked.kind, asked.agent, asked.arguments) == (Kind.APPROVAL, "a", '{"text": "x"}')


async def test_a_decision_for_the_whole_run_is_asked_for_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for verdict, runs in ((Verdict.APPROVE, 3), (Verdict.REJECT, 0)):
        people = People({"remember": Decision(verdict=verdict, always=True)})
        agent = caller(remember(log, needs_approval=True), arguments={"text": "x"}, times=3)
        await run(new_step(MemoryLedger("s"), decide=people), agent)
        assert len(people.asked) == 1
        assert executed(log)["tool x"] == runs
        log.unlink(missing_ok=True)


async def test_a_decision_for_the_whole_run_counts_in_later_runs_within_it(tmp_path: Path) -> None:
    people = People({"pay": Decision(verdict=Verdict.APPROVE, always=True)})
    await run(new_step(MemoryLedger("s"), decide=people), approved_below(tmp_path / "log"))
    # Two agents as tools had stopped at the same time; nothing after that is asked.
    assert [call.position for call in people.asked] == ["outer/0/0/inner/1/0", "outer/0/1/inner/1/0"]


async def test_an_answered_question_is_what_the_tool_returns(tmp_path: Path) -> None:
    people = People({"ask_user": Decision(verdict=Verdict.ANSWER, text="blue")})
    attempts = MemoryAttempts()
    for attempt in (1, 2):
        step = new_step(await attempts.open(), attempt=attempt, decide=people)
        await run(step, caller(ask_user, arguments={"question": "Colour?"}))
        assert output_of(step) == "blue"
    assert {call.kind for call in people.asked} == {Kind.QUESTION}


async def test_without_people_the_call_is_named(tmp_path: Path) -> None:
    with pytest.raises(TimestepError, match="Calls of 'remember' wait for a person's decision"):
        await run(new_step(MemoryLedger("s")), caller(remember(tmp_path / "log", needs_approval=True)))


async def test_who_suspends_ends_the_run_even_from_within_agents_as_tools(tmp_path: Path) -> None:
    class Suspended(BaseException):
        pass

    async def decide(calls: list[PendingCall]) -> dict[str, Decision]:
        raise Suspended

    ledger = MemoryLedger("s")
    with pytest.raises(Suspended):
        await run(new_step(ledger, decide=decide), approved_below(tmp_path / "log"))
    outer = ledger.known("outer/0/0")
    assert outer is not None and not outer.finished  # its run within has not come to its end


# Changed code.


async def test_a_changed_request_names_its_position_and_the_part(tmp_path: Path) -> None:
    attempts = MemoryAttempts()
    agent = caller(remember(tmp_path / "log"), arguments={"text": "x"})
    await run(new_step(await attempts.open()), agent)
    agent.instructions = "Be brief."
    with pytest.raises(UnitChangedError, match=r"at 'a/0'.*\(instructions\).*--accept-changes"):
        await run(new_step(await attempts.open(), attempt=2), agent)


async def test_a_change_within_an_agent_as_tool_is_no_answer_for_the_model(tmp_path: Path) -> None:
    log = tmp_path / "log"
    attempts = MemoryAttempts()
    inside = NamedModel("inner", [[("remember", {"text": "x"})], "said"], log)
    inner = Agent(name="inner", model=inside, tools=[remember(log)])
    plan: Plan = [[("ask", {"input": "x"})], "done"]
    agent = Agent(name="outer", model=PlannedModel(plan), tools=[inner.as_tool("ask", "Ask.")])
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=7)), agent)
    inner.instructions = "Be brief."
    with pytest.raises(UnitChangedError, match="'outer/0/0/inner/0'"):
        await run(new_step(await attempts.open(), attempt=2), agent)


async def test_how_a_call_is_made_is_no_change(tmp_path: Path) -> None:
    attempts = MemoryAttempts()
    agent = caller(remember(tmp_path / "log"), arguments={"text": "x"})
    await run(new_step(await attempts.open()), agent)
    agent.model_settings = ModelSettings(timeout=7, retry=ModelRetrySettings(max_retries=1), include_usage=True)
    told = Told()
    await run(new_step(await attempts.open(), attempt=2, events=told, policy=CallPolicy(model_timeout=9)), agent)
    assert told.events == []
