"""ControlFlow's agents, tasks and flows as steps: run to the end, killed and resumed, decided on, cancelled, failed."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from agents import MaxTurnsExceeded, ModelBehaviorError, ModelSettings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from storage.store import ObjectStore
from tests.conftest import ROOT
from timestep.agents.controlflow import Orchestration, run_controlflow
from timestep.agents.durable.run import DurableStep
from timestep.agents.record.approvals import Approvals
from timestep.agents.record.attempt import Attempt
from timestep.agents.record.lease import Lease
from timestep.agents.record.ledger import DatabaseLedger, MemoryLedger
from timestep.agents.record.sessions import open_session
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict
from timestep.agents.registry import load_agents, load_registry
from timestep.agents.think import Thinking, think
from timestep.agents.tools import StepContext
from timestep.agents.types import InferenceSettings
from timestep.database.engine import Database
from timestep.errors import TimestepError, UnitChangedError, UsageError
from timestep.settings import load_settings


class Stage:
    """A copy of the agents file, and steps on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = Path(shutil.copy(ROOT / "tests" / "controlflow_file.py", folder / "agents.py"))
        self.step: DurableStep

    @property
    def log(self) -> list[str]:
        """What was really called, without process ids."""
        log = self.folder / "calls.log"
        return [line.rsplit(" ", 1)[0] for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def positions(self) -> list[str]:
        return [call.position for call in self.step.calls]

    async def run(self, name: str, input: Any = "go", *, max_turns: int = 20, **step: Any) -> Orchestration:
        """The step, with the agents file loaded anew, as each flow run does."""
        agents = {agent.name: agent for agent in load_agents(self.file)}
        self.step = DurableStep("s", resolve=lambda agent: ("planned", agent.model), **step)
        context = StepContext("s", name, ObjectStore.open(f"local://{self.folder}/storage"), workspace="w")
        return await run_controlflow(
            self.step, agents[name].what, input, context=context, max_turns=max_turns, settings=ModelSettings()
        )


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


HANDED_OVER = ["author/0", "author/0/0", "author/0/1", "author/1", "author/1/0", "author/2", "editor/3", "editor/3/0"]


async def test_two_agents_hand_a_task_to_each_other(stage: Stage) -> None:
    ran = await stage.run("handed")
    assert ran.final_output == "done"
    assert stage.positions == [*HANDED_OVER, "editor/4"]
    names = [call.name for call in ran.tool_calls]
    assert names[:4] == ["note", "note", "note", "delegate_to_agent"] and names[-1].endswith("_successful")
    assert ran.tool_calls[0].output == "noted one"
    assert stage.step.usage().requests == 5 and stage.step.usage().output_tokens == 25
    roles = [message["role"] for message in stage.step.messages]
    assert roles[0] == "system" and roles[-2:] == ["assistant", "tool"]


async def test_an_agent_works_on_the_input(stage: Stage) -> None:
    await stage.run("editor", [{"role": "user", "content": "before"}, {"role": "user", "content": "Edit this."}])
    texts = [str(message.get("content")) for message in stage.step.messages]
    assert "Edit this." in texts[0] and "before" in texts


async def test_a_tasks_context_has_the_input(stage: Stage) -> None:
    await stage.run("handed", "About horses.")
    assert "{'input': 'About horses.'}" in stage.step.messages[0]["content"]


async def test_a_task_runs_what_it_depends_on(stage: Stage) -> None:
    assert (await stage.run("roof")).final_output == "steep"
    assert [position.split(".")[-1] for position in stage.positions] == ["nameless/0", "nameless/1", "roofer/2"]


async def test_a_synchronous_flow_runs_in_a_thread_of_its_own(stage: Stage) -> None:
    assert (await stage.run("report", "cats")).final_output == "cats: text of facts, 1 page"
    assert (await stage.run("report", '{"topic": "dogs", "pages": 2}')).final_output.endswith("2 page")
    assert [call.split(".")[-1] for call in stage.positions] == [
        *("finder/0", "finder/0/0", "finder/1"),
        *("writer/0", "writer/0/0", "writer/1"),
    ]


async def test_tasks_at_the_same_time_keep_their_positions(stage: Stage) -> None:
    ledger = MemoryLedger("s")
    assert (await stage.run("both", ledger=ledger)).final_output == ["a", "b"]
    before, log = sorted(stage.positions), stage.log
    assert (await stage.run("both", ledger=ledger)).final_output == ["a", "b"]
    assert sorted(stage.positions) == before and stage.log == log


async def test_a_flow_object_and_a_tasks_function(stage: Stage) -> None:
    assert (await stage.run("studio", "Write about roses.")).final_output == "roses"
    assert (await stage.run("poem", "roses")).final_output == "a poem"
    assert "{'about': 'roses'}" in stage.step.messages[0]["content"]


# -- killed


# name and input of a step, the note during which its process ends, what it comes to in the next one
KILLED = {
    "handed": ("handed", "go", "edited", {"output": "done"}),
    "threaded": ("report", "cats", "writer", {"output": "cats: text of facts, 1 page"}),
    "parallel": ("both", "x", "first", {"output": ["a", "b"]}),
    "once": ("careful", "go", "rare", {"error": "Calls of 'rare' wait for a person's decision, and nobody was named"}),
}


def attempts(url: str, stages: dict[str, Stage]) -> dict[str, dict[str, Any]]:
    """What came of an attempt at each step, all of them in processes with no memory of the ones before."""
    steps = [f"{stage.folder}/{KILLED[kind][0]}:{KILLED[kind][1]}" for kind, stage in stages.items()]
    command = [sys.executable, "-m", "tests.agents.controlflow_process", url, *steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert len(said) == len(stages), done.stderr
    return {kind: said[str(stage.folder)] for kind, stage in stages.items()}


@pytest.mark.long
def test_killed_in_a_tool_a_new_process_repeats_that_call_alone(tmp_path: Path, database: Database) -> None:
    stages = {}
    for kind, (_, _, dying, _) in KILLED.items():
        (tmp_path / kind).mkdir()
        stages[kind] = Stage(tmp_path / kind)
        (tmp_path / kind / "dying").write_text(dying)
    assert attempts(database.timestep_url, stages) == {kind: {"exit": 9} for kind in KILLED}
    said = attempts(database.timestep_url, stages)
    for kind, (name, input, dying, outcome) in KILLED.items():
        if "error" in outcome:  # a tool that must not run twice by itself
            assert said[kind]["error"].startswith(outcome["error"]) and stages[kind].log == ["model 0", f"tool {dying}"]
            continue
        assert said[kind] == outcome
        (tmp_path / kind / "whole").mkdir()
        whole = Stage(tmp_path / kind / "whole")
        asyncio.run(whole.run(name, input))
        assert Counter(stages[kind].log) - Counter(whole.log) == Counter([f"tool {dying}"])


# -- decided on by people


class SuspendedError(Exception):
    """Instead of Prefect's exception, which ends the process until people have decided."""


class Records:
    """The database's record of the step, and people who decide when they are told to."""

    def __init__(self, database: Database, lease: Lease, ledger: DatabaseLedger) -> None:
        self.ledger, self.approvals = ledger, Approvals(database, "s", lease)

    async def decide(self, calls: list[PendingCall]) -> dict[str, Decision]:
        await self.approvals.ask(calls)
        decisions = await self.approvals.decisions(calls)
        if len(decisions) < len(calls):
            raise SuspendedError
        return decisions

    async def say(self, verdict: Verdict, text: str | None = None) -> list[PendingCall]:
        """Decide so of everything that is pending; returns that."""
        pending = await self.approvals.pending()
        for call in pending:
            await self.approvals.decide(call.call_id, Decision(verdict=verdict, text=text), by="test")
        return pending


@pytest.fixture
async def records(database: Database, tmp_path: Path) -> AsyncIterator[Records]:
    lease = await Lease.acquire(database, "s")
    ledger = await DatabaseLedger.open(database, lease, ObjectStore.open(f"local://{tmp_path}/storage"))
    yield Records(database, lease, ledger)
    await lease.close()


async def test_calls_that_need_approval_wait_for_it_together(stage: Stage, records: Records) -> None:
    with pytest.raises(SuspendedError):
        await stage.run("payer", ledger=records.ledger, decide=records.decide)
    assert stage.log == ["model 0"]
    pending = await records.say(Verdict.APPROVE)
    assert [(call.position, call.kind, call.tool) for call in pending] == [
        ("payer/0/0", Kind.APPROVAL, "pay"),
        ("payer/0/1", Kind.APPROVAL, "guarded"),
    ]
    for _ in range(2):  # the second time all is on the record
        ran = await stage.run("payer", ledger=records.ledger, decide=records.decide)
        assert ran.final_output == "settled"
    assert stage.log == ["model 0", "tool pay 5", "tool g", "model 1"]


async def test_a_rejected_call_does_not_run_and_the_model_is_told_why(stage: Stage, records: Records) -> None:
    with pytest.raises(SuspendedError):
        await stage.run("payer", ledger=records.ledger, decide=records.decide)
    await records.say(Verdict.REJECT, "too much")
    ran = await stage.run("payer", ledger=records.ledger, decide=records.decide)
    assert ran.tool_calls[0].output == "A person rejected this call: too much"
    assert stage.log == ["model 0", "model 1"]


async def test_questions_are_answered_by_people(stage: Stage, records: Records) -> None:
    for answer in ("because", "like this"):
        with pytest.raises(SuspendedError):
            await stage.run("asker", ledger=records.ledger, decide=records.decide)
        assert [call.kind for call in await records.say(Verdict.ANSWER, answer)] == [Kind.QUESTION]
    ran = await stage.run("asker", ledger=records.ledger, decide=records.decide)
    assert [call.output for call in ran.tool_calls[:2]] == ["because", "like this"]


async def test_a_decision_for_always_is_asked_for_once(stage: Stage, records: Records) -> None:
    asked: list[str] = []

    async def decide(calls: list[PendingCall]) -> dict[str, Decision]:
        asked.extend(call.position for call in calls)
        return {call.position: Decision(verdict=Verdict.REJECT, always=True) for call in calls}

    await stage.run("insister", decide=decide)
    assert asked == ["insister/0/0"] and stage.log == ["model 0", "model 1", "model 2"]


# -- cancelled


@pytest.mark.parametrize(
    ("name", "sign"), [("sleeper", "tool slow"), ("blocker", "tool stuck"), ("held", "tool stuck")]
)
async def test_cancelled_it_ends_at_once_and_leaves_its_messages(stage: Stage, name: str, sign: str) -> None:
    running = asyncio.create_task(stage.run(name))
    while sign not in stage.log:
        await asyncio.sleep(0.02)
        assert not running.done(), running.result()
    running.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started < 5
    assert [call.position.split(".")[-1] for call in stage.step.calls][-1].endswith("/0/0")
    assert stage.step.messages[-1]["role"] == "assistant"


# -- failed


async def test_a_failed_task_is_one_clear_line(stage: Stage) -> None:
    with pytest.raises(TimestepError, match=r"^Task 'go' failed: No ink\.$"):
        await stage.run("quitter")


async def test_too_many_turns_are_refused(stage: Stage) -> None:
    with pytest.raises(MaxTurnsExceeded):
        await stage.run("talker", max_turns=2)
    assert stage.log == ["model 0", "model 0"]


async def test_a_failing_tool_is_the_models_to_deal_with_and_not_run_again(stage: Stage) -> None:
    ledger = MemoryLedger("s")
    for _ in range(2):
        ran = await stage.run("clumsy", ledger=ledger)
        assert [call.output for call in ran.tool_calls[:2]] == [
            'Error calling function "broken": this tool is broken',
            'There is no tool called "nowhere".',
        ]
        assert ran.final_output == "it failed"
    assert stage.log.count("tool broken") == 1


async def test_a_synchronous_call_in_the_event_loop_is_refused(stage: Stage) -> None:
    with pytest.raises(UsageError, match="Await its '_async' variant"):
        await stage.run("blocking")


async def test_changed_code_is_named(stage: Stage) -> None:
    ledger = MemoryLedger("s")
    await stage.run("handed", ledger=ledger)
    stage.file.write_text(stage.file.read_text().replace("Write it together.", "Write it apart."))
    with pytest.raises(UnitChangedError, match="author/0"):
        await stage.run("handed", ledger=ledger)


async def test_arguments_that_a_flow_lacks_are_named(stage: Stage) -> None:
    with pytest.raises(UsageError, match="'pair' takes 'a', 'b'"):
        await stage.run("pair", "only one")


# -- as the service runs it


class Nobody:
    """No one is asked."""

    async def decisions(self, calls: list[PendingCall]) -> dict[str, Decision]:
        raise AssertionError(calls)

    async def suspend(self, calls: list[PendingCall]) -> NoReturn:
        raise AssertionError(calls)

    async def wake(self, step_id: str) -> None:
        raise AssertionError(step_id)


ASKED, OFFERED = "Two desks and four chairs, please.", "We offer all of it for 860 euros."


async def test_the_example_runs_as_a_step(tmp_path: Path, database: Database) -> None:
    """Registry, models by the service's rules, ledger, session and trace; only the models are scripted."""
    agents = [ROOT / "examples" / "offer_scripted.py"]
    settings = load_settings(home=tmp_path, agents=agents, database_url=database.timestep_url)
    store, registry = ObjectStore.open(settings.storage), load_registry(settings)
    request = Thinking("s", ASKED, "offer", "talk", None, 5, InferenceSettings())
    async with Attempt.begin(Database(database.timestep_url), store, "s") as attempt:
        output, trace = await think(request, settings, store, registry, attempt, Nobody())
        await attempt.lease.close()
    session = await (await open_session(database, "talk")).get_items()
    assert output.output == OFFERED
    assert (output.agent, output.model, output.turns) == ("offer", "Script", 3)
    assert [call.name for call in output.tool_calls][:3] == ["price", "price", "delegate_to_agent"]
    assert [call.output for call in output.tool_calls[:2]] == ["480", "380"]
    positions = ["estimator/0", "estimator/0/0", "estimator/0/1", "estimator/1", "writer/2"]
    assert [call["position"] for call in trace["calls"]] == positions
    assert trace["messages"][0]["role"] == "system" and trace["tools"]
    assert session == [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": OFFERED},
    ]


# -- models of LangChain


class Chat(BaseChatModel):
    """A model of LangChain's own kind."""

    @property
    def _llm_type(self) -> str:
        return "chat"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self.bind(tools=tools)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **given: Any) -> ChatResult:
        name = next(name for tool in given["tools"] if (name := tool["function"]["name"]).endswith("_successful"))
        call = {"name": name, "args": {"result": "by LangChain"}, "id": "c"}
        usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
        message = AIMessage(content="", tool_calls=[call], usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


async def test_an_agent_may_bring_a_model_of_langchain(stage: Stage) -> None:
    text = "import controlflow\nfrom tests.agents.test_controlflow import Chat\n"
    stage.file.write_text(f"{text}other = controlflow.Agent(name='other', model=Chat())\n")
    ran = await stage.run("other")
    assert ran.final_output == "by LangChain"
    assert (stage.step.calls[0].name, stage.step.usage().total_tokens) == ("Chat", 5)


async def test_a_function_says_which_calls_need_an_approval(stage: Stage) -> None:
    asked: list[PendingCall] = []

    async def decide(calls: list[PendingCall]) -> dict[str, Decision]:
        asked.extend(calls)
        return {call.position: Decision(verdict=Verdict.APPROVE) for call in calls}

    await stage.run("chooser", decide=decide)
    assert [call.arguments for call in asked] == ['{"text": "LOUD"}']
    assert stage.log.count("tool quiet") == stage.log.count("tool LOUD") == 1


async def test_calls_of_one_id_are_refused_before_any_of_them_runs(stage: Stage) -> None:
    with pytest.raises(ModelBehaviorError, match="'stutterer' gave the id 'call_1' to 2 calls"):
        await stage.run("stutterer")
    assert stage.log == ["model 0"]
