"""What tools and agents return that has no JSON of its own: it is on the record, and the step ends well."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, FunctionToolResult, ToolOutputText, ToolsToFinalOutputResult, function_tool
from pydantic import BaseModel

from storage.store import ObjectStore
from storage.traces import TraceStore
from tests.agents.durably import MemoryAttempts, new_step, run
from tests.scripted import PlannedModel
from timestep.agents import report
from timestep.agents.plain import plain, whole
from timestep.agents.record.ledger import MemoryLedger
from timestep.agents.record.step_trace import StepTrace
from timestep.agents.think import Thinking, _output, _Ran
from timestep.agents.types import InferenceSettings, StepOutput


@dataclass
class Trip:
    when: date
    length: float


class Packet(BaseModel):
    data: bytes
    weight: float | None = None


class Opaque:
    def __str__(self) -> str:
        return "opaque"


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def output_of(final: Any, step: Any = None) -> StepOutput:
    request = Thinking("s", "go", "a", None, None, 5, InferenceSettings())
    return _output(request, step or new_step(MemoryLedger("s")), _Ran(final))


FINALS: list[tuple[Any, Any]] = [
    (Trip(date(2020, 1, 1), 2.5), {"when": "2020-01-01", "length": 2.5}),
    ([Trip(date(2020, 1, 1), math.nan)], [{"when": "2020-01-01", "length": None}]),
    ({"at": date(2020, 1, 1), "what": Opaque()}, {"at": "2020-01-01", "what": "opaque"}),
    (Packet(data=b"ok", weight=math.inf), {"data": "ok", "weight": None}),
    (Opaque(), "opaque"),
    (Mute(), "<Mute>"),
    ("half \ud83d", "half \ufffd"),
    ("both \ud83d\ude00", "both 😀"),
    (None, None),
]


@pytest.mark.parametrize(("final", "expected"), FINALS, ids=[type(final).__name__ for final, _ in FINALS])
async def test_any_final_output_is_json_in_the_output_the_trace_and_the_report(
    final: Any, expected: Any, tmp_path: Path
) -> None:
    output = output_of(final)
    assert output.output == expected
    store = ObjectStore.open(f"local://{tmp_path}")
    trace = StepTrace(store, new_step(MemoryLedger("s")), datetime.now(UTC), {"agent": "a"})
    reference = await trace.completed(output)
    assert (await TraceStore(store).read(reference))["output"] == expected
    json.dumps(json.loads(output.model_dump_json()), allow_nan=False)
    report.summary(output, trace.content).encode()


async def test_an_error_is_what_ends_the_step_whatever_becomes_of_its_trace(tmp_path: Path) -> None:
    step = new_step(MemoryLedger("s"))
    step.messages = [{"role": "user", "content": "half \ud83d"}]
    trace = StepTrace(ObjectStore.open(f"local://{tmp_path}"), step, datetime.now(UTC), {"agent": "a"})
    await trace.ended(error := ValueError("half \ud83d"))
    assert not hasattr(error, "__notes__")
    assert json.loads(next(tmp_path.rglob("s.json")).read_text())["error"] == "half ?"
    step.calls = [object()]  # type: ignore[list-item]
    await trace.ended(error)
    assert "trace could not be written" in error.__notes__[0]
    await trace.waiting("It waits.")
    assert trace.content["error"].startswith("It waits. The trace could not be written")


def returning(output: Any, **options: Any) -> tuple[Agent[Any], list[int]]:
    ran: list[int] = []

    def measure() -> Any:
        ran.append(1)
        return output

    tool = function_tool(measure, **options)
    return Agent(name="a", model=PlannedModel([[("measure", {})], "done"]), tools=[tool]), ran


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Packet(data=b"\xff"), r"data=b'\xff' weight=None"),
        (Packet(data=b"x"), "data=b'x' weight=None"),
        ([Packet(data=b"x")], "[Packet(data=b'x', weight=None)]"),
        (Trip(date(2020, 1, 1), 1.0), "Trip(when=datetime.date(2020, 1, 1), length=1.0)"),
        (Mute(), "<Mute>"),
        ("half \ud83d", "half \ufffd"),
        ({"a": math.nan}, "{'a': nan}"),
        (ToolOutputText(text="said"), "[{'type': 'input_text', 'text': 'said'}]"),
    ],
    ids=["no UTF-8", "model", "models", "dataclass", "no text", "surrogate", "NaN", "text"],
)
async def test_a_tool_that_ran_is_on_the_record_as_the_sdk_tells_the_model(output: Any, expected: str) -> None:
    attempts = MemoryAttempts()
    agent, ran = returning(output)
    for attempt in (1, 2):
        result = await run(new_step(await attempts.open(), attempt=attempt), agent)
        told = [item.to_input_item() for item in result.new_items if item.type == "tool_call_output_item"]
        assert str(told[0]["output"]) == expected  # type: ignore[typeddict-item]
    assert ran == [1]


async def test_a_declared_type_that_cannot_read_what_it_writes_does_not_run_again() -> None:
    attempts = MemoryAttempts()
    agent, ran = returning(Packet(data=b"\xff"), output_type=Packet)
    for attempt in (1, 2):
        with pytest.raises(Exception, match="declared output"):
            await run(new_step(await attempts.open(), attempt=attempt), agent)
    assert ran == [1]


async def test_an_object_that_ends_the_run_is_its_json_from_the_record_too() -> None:
    attempts = MemoryAttempts()
    agent, ran = returning(trip := Trip(date(2020, 1, 1), 1.0))
    agent.tool_use_behavior = "stop_on_first_tool"
    agent.output_type = Trip
    for attempt in (1, 2):
        result = await run(new_step(await attempts.open(), attempt=attempt), agent)
        assert output_of(result.final_output).output == {"when": "2020-01-01", "length": 1.0}
    assert ran == [1] and str(trip) == str(result.final_output)

    def own(_: Any, results: list[FunctionToolResult]) -> ToolsToFinalOutputResult:
        return ToolsToFinalOutputResult(is_final_output=True, final_output=[results[0].output, date(2020, 1, 2)])

    agent.tool_use_behavior = own
    result = await run(new_step(await attempts.open(), attempt=3), agent)
    assert output_of(result.final_output).output == [str(trip), "2020-01-02"]


def test_nul_is_kept_unless_it_is_asked_to_go() -> None:
    assert whole({"a\0": ["b\0"]}) == {"a\0": ["b\0"]} == plain({"a\0": ["b\0"]})
    assert whole({"a\0": ["b\0"]}, nul=False) == {"a\ufffd": ["b\ufffd"]}


async def test_an_output_has_the_figures_of_each_call_up_to_a_bound() -> None:
    agent, _ = returning("said")
    step = new_step(MemoryLedger("s"))
    result = await run(step, agent)
    output = output_of(result.final_output, step)
    assert [(call.position, call.kind, call.name, call.input_tokens, call.output_tokens) for call in output.calls] == [
        ("a/0", "model", "scripted", 10, 5),
        ("a/0/0", "tool", "measure", None, None),
        ("a/1", "model", "scripted", 10, 5),
    ]
    assert [call.seconds for call in output.calls] == [call.seconds for call in step.calls]
    assert output.calls[0].seconds > 0
    step.calls[0].cost = 0.5
    assert output_of("x", step).calls[0].cost == 0.5
    step.calls *= 100
    assert len(output_of("x", step).calls) == 200
