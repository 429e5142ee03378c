"""Requests of the Responses API: what is refused, and how they are said as chat."""

from typing import Any

import pytest

from timestep.agents.respond import check, of_step, parameters
from timestep.agents.responses.chat import Answer, BrokenChatError, chat_body
from timestep.agents.responses.events import Event, Narrator
from timestep.agents.responses.items import complete, messages, shortened
from timestep.agents.responses.objects import ended, skeleton
from timestep.agents.responses.request import checked
from timestep.errors import NotFoundError, NotSupportedError, ParameterError, TooLargeError, UsageError

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
MADE = {"type": "mcp_call", "id": "mcp_1", "name": "g", "arguments": "{}", "output": "43", "server_label": "agent"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "42"}]}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"background": True}, "background"),
        ({"stream": True}, "stream"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"colour": "red"}, "colour"),
        ({"timestep_earlier": 1}, "timestep_earlier"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "name": "no name"}]}, "tools.0.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"metadata": {"k": "x" * 513}}, "metadata"),
        ({"metadata": {"k": "\0"}}, "metadata"),
        ({"input": [{"role": "user", "content": "x", "id": "\0"}]}, "input[0].id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "assistant", "content": [{"type": "refusal"}]}]}, "input[0].content[0].refusal"),
        ({"input": [{**MADE, "output": 5}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "content": 5}]}, "input[0].content"),
        ({"input": [{"type": "reasoning", "summary": ["x"]}]}, "input[0].summary"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": "half \ud83d"}, "input"),
        ({"model": "agent/a", "tools": [TOOL]}, "tools"),
        ({"model": "agent/a", "text": {"format": {"type": "json_object"}}}, "text.format"),
    ],
)
def test_what_a_step_cannot_answer_is_refused_by_its_parameter(given: dict[str, Any], param: str) -> None:
    with pytest.raises(UsageError) as caught:
        check({"model": "m", "input": "x", **given})
    assert isinstance(caught.value, ParameterError | NotSupportedError) and caught.value.param == param
    assert f"'{param}'" in str(caught.value)


def test_a_parameter_that_is_null_counts_as_absent() -> None:
    check({"model": "m", "input": "x", "prompt": None, "max_tool_calls": None, "context_management": None, "new": None})


def test_an_item_that_no_chat_can_say_is_refused() -> None:
    for item in ({"type": "mcp_call"}, {"role": "assistant", "content": [{"type": "refusal"}]}):
        with pytest.raises(ParameterError, match="input"):
            messages([item], None)


def test_a_client_names_no_files_as_models() -> None:
    with pytest.raises(NotFoundError, match=r"/etc/x\.gguf"):
        check({"model": "/etc/x.gguf", "input": "x"})


def test_a_request_is_said_as_chat() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        CALL,
        RESULT,
        {"role": "assistant", "content": "It is 42."},
        MADE,
    ]
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    request = checked({"model": "m", "input": items, "instructions": "Sys", "text": text, "tools": [TOOL], "top_p": 0.5,
                       "tool_choice": allowed, "max_output_tokens": 5, "parallel_tool_calls": False})  # fmt: skip
    body = chat_body(request, complete(request.input))
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "developer", "user", "assistant", "tool", "assistant", "tool"]
    assert body["messages"][2]["content"] == "Hi" and body["messages"][5]["content"] == "It is 42."
    assert body["messages"][5]["tool_calls"][0]["id"] == body["messages"][6]["tool_call_id"] == "mcp_1"
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert body["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert body["tools"][0]["function"] == {"name": "f", "parameters": {"type": "object"}, "strict": True}
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert body["tool_choice"] == {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}}
    assert (body["max_tokens"], body["top_p"], body["parallel_tool_calls"]) == (5, 0.5, False)


def test_a_step_knows_which_items_its_request_added() -> None:
    earlier = complete("before")
    body = {"model": "agent/clerk", "input": "now", "temperature": 0, "tool_choice": "required"}
    asked = parameters(body, earlier, 7)
    assert (asked["agent"], asked["model"]) == ("clerk", None)
    assert (asked["inference"]["temperature"], asked["inference"]["tool_choice"]) == (0, "required")
    request = of_step(asked["inference"]["request"])
    assert [item["content"][0]["text"] for item in request.added] == ["now"]
    assert len(request.input) == 2 and request.behind == 7


def test_a_request_that_is_too_long_for_a_flow_run_is_refused_by_its_size() -> None:
    with pytest.raises(TooLargeError, match="500000"):
        parameters({"model": "m", "input": "now"}, complete("x" * 500_000))


def test_a_context_that_is_too_short_loses_what_was_said_first() -> None:
    system, first, last = ({"role": role, "content": role} for role in ("system", "user", "user"))
    assert shortened([system, first, CALL, RESULT, last]) == [system, CALL, RESULT, last]
    assert shortened([system, CALL, RESULT, last]) == [system, last]
    assert shortened([system, last]) is None


async def told(*deltas: dict[str, Any], finish: str | None = "stop") -> tuple[Answer, list[Event]]:
    async def chunks() -> Any:
        for delta in deltas:
            yield {"model": "m@1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
        yield {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}

    answer = Answer(Narrator(skeleton(checked({"model": "m", "input": "x"}), "resp_0", 0)))
    return answer, [event async for event in answer.events(chunks())]


async def test_thoughts_words_and_parallel_calls_become_items_of_their_own() -> None:
    calls = [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}},
             {"index": 1, "id": "b", "function": {"name": "f", "arguments": "{}"}},
             {"index": 0, "function": {"arguments": ": 1}"}}]  # fmt: skip
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": "Hm."},
        {"content": "So: "},
        *({"tool_calls": [call]} for call in calls),
    ]
    answer, events = await told(*deltas)
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert [(item["call_id"], item["arguments"]) for item in items[2:]] == [("a", '{"x": 1}'), ("b", "{}")]
    assert answer.model == "m@1" and answer.usage is not None and answer.usage["total_tokens"] == 7


async def test_a_turn_that_reaches_its_limit_before_a_word_has_an_incomplete_message() -> None:
    _, events = await told(finish="length")
    assert events[-1]["item"]["status"] == "incomplete"


async def test_a_turn_that_is_filtered_is_incomplete_and_says_why() -> None:
    _, events = await told({"content": "I"}, finish="content_filter")
    response = ended(skeleton(checked({"model": "m", "input": "x"}), "resp_0", 0), [events[-1]["item"]])
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})


async def test_a_refusal_is_a_part_of_the_message() -> None:
    _, events = await told({"content": "I "}, {"refusal": "won't."})
    assert [part["type"] for part in events[-1]["item"]["content"]] == ["output_text", "refusal"]


async def test_an_answer_without_an_end_is_broken() -> None:
    with pytest.raises(BrokenChatError, match="broke off"):
        await told({"content": "Half a"}, finish=None)
    with pytest.raises(BrokenChatError, match="no memory"):
        answer = Answer(Narrator(skeleton(checked({"model": "m", "input": "x"}), "resp_0", 0)))

        async def failing() -> Any:
            yield {"error": {"message": "There is no memory left."}}

        _ = [event async for event in answer.events(failing())]
