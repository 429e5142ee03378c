"""A step's events folded into those of its response: whatever happened in between, each word is told once."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from timestep.agents.durable.streams import DELTAS
from timestep.agents.record.events import Event as StepEvent
from timestep.agents.responses.chat import Answer
from timestep.agents.responses.events import Event, Narrator
from timestep.agents.responses.objects import skeleton
from timestep.agents.responses.request import checked
from timestep.agents.responses.told import StepFold, finished_tool

POSITION = "responses/0"


def fold(*happened: tuple[str, dict[str, Any]], output: list[Any], model: str = "m") -> list[Event]:
    """The events of a response whose step these things happened in, and that said ``output`` in the end."""
    narrator = Narrator(skeleton(checked({"model": model, "input": "x"}), "resp_0", 0, "queued"))
    told = StepFold(narrator)
    events: list[Event] = []
    for number, (kind, data) in enumerate(happened, 1):
        position = data.pop("at", POSITION)
        event = StepEvent(number, kind, position, data, datetime.now(UTC))
        events += told.events(event)
        if finished_tool(event):
            events += told.called(position, data["item"])
    return events + told.rest(output)


def said(text: str) -> tuple[str, dict[str, Any]]:
    return ("output_text.delta", {"delta": text})


def thought(text: str) -> tuple[str, dict[str, Any]]:
    return ("reasoning_text.delta", {"delta": text})


async def answered(*deltas: dict[str, Any], finish: str = "stop") -> tuple[list[Any], list[Any]]:
    """What a step tells while a model says these deltas, and the output items of its response."""
    narrator = Narrator(skeleton(checked({"model": "m", "input": "x"}), "resp_0", 0))

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        for delta in [*deltas, {}]:
            yield {"choices": [{"delta": delta, "finish_reason": None if delta else finish}]}

    said = [event async for event in Answer(narrator).events(chunks())]
    told = [(DELTAS[event["type"]], {"delta": event["delta"]}) for event in said if event["type"] in DELTAS]
    return [("call.started", {}), *told], narrator.output


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "status": "completed", "content": [{"type": "output_text", "text": text}]}


def deltas(events: list[Event]) -> list[str]:
    return [event["delta"] for event in events if event["type"] == "response.output_text.delta"]


def items(events: list[Event]) -> list[Any]:
    found = [event for event in events if event["type"] == "response.output_item.done"]
    return [event["item"] for event in sorted(found, key=lambda event: event["output_index"])]


def done(events: list[Event]) -> list[tuple[str, str]]:
    return [(item["status"], "".join(part["text"] for part in item["content"])) for item in items(events)]


def test_a_call_that_says_the_same_again_after_a_crash_is_told_once() -> None:
    again = [("call.restarted", {}), ("call.started", {}), said("The"), said(" oce"), said("an is"), said(" blue")]
    events = fold(("call.started", {}), said("The ocean"), *again, output=[message("The ocean is blue")])
    assert deltas(events) == ["The ocean", " is", " blue"]
    assert done(events) == [("completed", "The ocean is blue")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_a_call_that_says_something_else_after_a_crash_begins_another_message() -> None:
    again = [("call.restarted", {}), said("The"), said(" sea")]
    events = fold(("call.started", {}), said("The ocean"), *again, output=[message("The sea")])
    assert done(events) == [("incomplete", "The ocean"), ("completed", "The sea")]


def test_words_that_were_lost_are_told_at_the_end() -> None:
    events = fold(("call.started", {}), said("One"), ("gap", {}), said(" four"), output=[message("One two three four")])
    assert deltas(events) == ["One", " two three four"]


def test_words_whose_deltas_are_gone_are_told_whole() -> None:
    events = fold(("call.started", {}), ("call.finished", {}), output=[message("All of it")])
    assert deltas(events) == ["All of it"] and done(events) == [("completed", "All of it")]


def test_a_message_that_was_told_is_not_told_again_behind_what_was_thought_before_it() -> None:
    reasoning = {"type": "reasoning", "status": "completed", "summary": [], "content": []}
    call = {"type": "function_call", "status": "completed", "call_id": "c", "name": "f", "arguments": "{}"}
    for first in (reasoning, call):
        happened = [("call.started", {}), said("Hello "), said("world")]
        events = fold(*happened, output=[first, message("Hello world")])
        ends = [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"]
        assert deltas(events) == ["Hello ", "world"] and ends == ["message", first["type"]]


@pytest.mark.parametrize("finish", ["stop", "length", "content_filter"])
@pytest.mark.parametrize("lost", range(6))
async def test_a_stream_of_thoughts_and_words_has_the_items_of_its_response(lost: int, finish: str) -> None:
    """However much of it was ``lost`` at the end."""
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    for said in ({"content": "Hel"}, {"content": "lo"}), ({"tool_calls": [call]},), ():
        told, output = await answered({"reasoning_content": "Hm, "}, {"reasoning": "hello?"}, *said, finish=finish)
        told = [*told[: max(len(told) - lost, 0)], ("gap", {})]
        assert items(fold(*told, output=output)) == output


def test_what_a_model_thinks_again_after_a_crash_is_told_once() -> None:
    again = [("call.restarted", {}), thought("Hm, hello"), thought("?"), said("Hello there")]
    output = [{"type": "reasoning", "status": "completed", "content": [{"text": "Hm, hello?"}]}, message("Hello there")]
    for before in ([thought("Hm")], [thought("Hm, "), thought("hello?")], [thought("Hm, hello?"), said("Hello")]):
        events = fold(("call.started", {}), *before, *again, output=output)
        assert done(events) == [("completed", "Hm, hello?"), ("completed", "Hello there")]
    for before in ([thought("Well")], [thought("Hm, hello?!")]):
        events = fold(("call.started", {}), *before, *again, output=output)
        assert done(events) == [("incomplete", before[0][1]["delta"]), *done(fold(*again, output=output))]


def test_thoughts_that_the_response_does_not_have_are_not_told_or_given_up() -> None:
    happened = [("call.started", {}), thought("Hm"), said("Hello")]
    assert done(fold(*happened, output=[message("Hello")], model="agent/a")) == [("completed", "Hello")]
    assert done(fold(*happened[:2], output=[])) == [("incomplete", "Hm")]


def test_what_was_told_does_not_change_by_what_is_told_later() -> None:
    narrator = Narrator(skeleton(checked({"model": "m", "input": "x"}), "resp_0", 0))
    added = next(event for event in narrator.text("a", [{"token": "a"}]) if event["type"].endswith("part.added"))
    narrator.text("b", [{"token": "b"}])
    assert added["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def test_calls_of_an_agent_are_told_in_the_order_of_their_asking() -> None:
    def call(name: str) -> dict[str, Any]:
        known = {"type": "mcp_call", "id": name, "name": name, "arguments": "{}", "output": "ok", "server_label": "a"}
        return known | {"status": "completed"}

    def finished(index: int, name: str) -> tuple[str, dict[str, Any]]:
        return ("call.finished", {"at": f"a/0/{index}", "kind": "tool-call", "item": call(name)})

    happened = [("call.started", {"at": "a/0"}), finished(1, "second"), finished(0, "first")]
    below = ("output_text.delta", {"at": "a/0/0/b/0", "delta": "of an agent that is a tool"})
    events = fold(*happened, below, output=[call("first"), call("second"), message("Done")])
    assert [item.get("name", "message") for item in items(events)] == ["first", "second", "message"]
    assert deltas(events) == ["Done"]
