"""What the scripted engine promises: equal requests, equal answers, and everything that the API demands of one."""

import json
from typing import Any

import pytest

from timestep.errors import NotFoundError, UsageError
from timestep.models.generation import Generation
from timestep.models.scripted import ScriptedEngine

ENGINE = ScriptedEngine(1024)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


WEATHER = tool("get_weather", city={"type": "string"})
ADD = tool("add", a={"type": "integer"}, b={"type": "integer"})


def say(text: str, tools: list[dict[str, Any]] | None = None, **options: Any) -> Generation:
    generation = ENGINE.stream([{"role": "user", "content": text}], tools, **options)
    list(generation)
    return generation


def calls(generation: Generation) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in generation.message.tool_calls]


def test_equal_requests_give_equal_answers() -> None:
    assert say("Hello").message.content == say("Hello").message.content == "Message 1 says: Hello"


def test_the_deltas_are_the_message() -> None:
    generation = ENGINE.stream([{"role": "user", "content": "Count to 5"}])
    assert "".join(delta["content"] for delta in generation) == generation.message.content == "1 2 3 4 5"


def test_a_mentioned_tool_is_called_with_values_out_of_the_message() -> None:
    generation = say("How is the weather in San Francisco, CA?", [WEATHER, ADD])
    assert calls(generation) == [("get_weather", {"city": "San Francisco, CA"})]
    assert generation.finish_reason == "tool_calls" and not generation.forced


def test_several_tools_are_called_at_once_unless_that_is_forbidden() -> None:
    asked = "Use get_weather for 'Rome' and add 3 and 4"
    assert calls(say(asked, [WEATHER, ADD])) == [("get_weather", {"city": "Rome"}), ("add", {"a": 3, "b": 4})]
    assert len(calls(say(asked, [WEATHER, ADD], parallel_tool_calls=False))) == 1


def test_no_tool_is_called_that_nothing_asks_for() -> None:
    assert not calls(say("Good morning", [WEATHER, ADD]))


def test_the_tool_choice_is_kept() -> None:
    named = {"type": "function", "function": {"name": "add"}}
    assert [name for name, _ in calls(say("Good morning", [WEATHER, ADD], tool_choice=named))] == ["add"]
    assert calls(say("Good morning", [WEATHER, ADD], tool_choice="required"))
    assert not calls(say("How is the weather?", [WEATHER], tool_choice="none"))
    with pytest.raises(NotFoundError, match="ad"):
        say("Hello", [ADD], tool_choice={"type": "function", "function": {"name": "ad"}})


def test_a_tool_that_has_answered_is_not_called_again() -> None:
    messages = [
        {"role": "user", "content": "How is the weather in Rome?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "get_weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "18 degrees"},
    ]
    generation = ENGINE.stream(messages, [WEATHER])
    list(generation)
    assert generation.message.content == "The tools say: 18 degrees"


def test_the_response_format_is_kept() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert json.loads(say("I have 3 cats", response_format=form).message.content or "") == {"n": 3}
    answer = say("Answer with the key 'colour'", response_format={"type": "json_object"}).message.content
    assert list(json.loads(answer or "")) == ["colour"]


def test_limits_and_stops_are_kept() -> None:
    cut = say("Count to 50", max_tokens=3)
    assert (cut.message.content, cut.finish_reason, cut.completion_tokens) == ("1 2 3", "length", 3)
    stopped = say("Count to 50", stop=["4"])
    assert (stopped.message.content, stopped.finish_reason) == ("1 2 3", "stop")
    with pytest.raises(UsageError, match="TIMESTEP_CONTEXT_LENGTH"):
        say("word " * 1100)


def test_log_probabilities_cover_the_text() -> None:
    generation = say("Hello", logprobs=2)
    assert generation.logprobs is not None
    assert "".join(entry["token"] for entry in generation.logprobs) == generation.message.content


def test_a_text_goes_on_and_may_be_echoed() -> None:
    generation = ENGINE.complete("Once upon a time", echo=True, max_tokens=2)
    assert "".join(delta["content"] for delta in generation) == "Once upon a timeMessage 1"
    assert generation.completion_tokens == 2


def test_tokens_are_code_points() -> None:
    generation = ENGINE.complete([72, 105])
    list(generation)
    assert generation.message.content == "Message 1 says: Hi"
    with pytest.raises(UsageError, match="code points"):
        ENGINE.complete([0x110000])


def test_a_slow_answer_can_be_ended() -> None:
    generation = ENGINE.stream([{"role": "user", "content": "Please take 60 seconds"}])
    assert next(iter(generation)) == {}  # before the first word, and long before the last
    generation.close()
    assert not generation.message.content


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "("},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        {"type": "string", "minLength": 10**10},
        {"type": "array", "items": {"type": "string"}, "minItems": "many"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}}, "required": ["b", "b"]}}},
    ],
)
def test_a_schema_that_can_not_be_met_is_refused(schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}, "required": ["a"]}}
    asked: list[dict[str, Any]] = [{"response_format": form}, {"tools": [{"type": "function", "function": function}]}]
    for more in asked:
        with pytest.raises(UsageError, match="schema"):
            say("Call f", **more)


def test_it_counts_as_far_as_the_context_goes() -> None:
    for far in ("999999999999", "9" * 5000):
        generation = say(f"Count to {far}")
        assert generation.finish_reason == "length"
        assert generation.prompt_tokens + generation.completion_tokens == ENGINE.context_length
