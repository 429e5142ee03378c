"""POST /v1/responses and its objects, foreground and background."""

import json

import pytest
from conftest import PERSON, until
from conftest import WEATHER as CHAT_WEATHER
from openai import BadRequestError, NotFoundError, OpenAI

WEATHER = {"type": "function", **CHAT_WEATHER["function"], "strict": True}  # flat, as this API has tools
ENDS = {"completed", "failed", "cancelled", "incomplete"}


def test_whole(client: OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="Hello there", temperature=0)  # so that it finds an end
    assert answer.object == "response" and answer.status == "completed" and answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0


def test_items_as_input(client: OpenAI, model: str) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Yes?", "annotations": []}],
        },
        {"type": "message", "role": "user", "content": "Go on."},
    ]
    assert client.responses.create(model=model, input=items, instructions="In English.").output_text


def test_stream(client: OpenAI, model: str) -> None:
    events = list(client.responses.create(model=model, input="Hello there", temperature=0, stream=True))
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == events[-1].response.output_text != ""


def test_stream_helper(client: OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input="Hello there", temperature=0) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_response().output_text
    assert {"response.output_item.added", "response.content_part.added", "response.output_item.done"} <= kinds


def test_retrieve(client: OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="Hello there", metadata={"colour": "blue"})
    again = client.responses.retrieve(answer.id)
    assert again.output_text == answer.output_text and again.metadata == {"colour": "blue"}


def test_input_items(client: OpenAI, model: str) -> None:
    items = [{"role": "user", "content": f"Line {number}"} for number in range(3)]
    answer = client.responses.create(model=model, input=items)
    page = client.responses.input_items.list(answer.id, order="asc", limit=2)
    assert len(page.data) == 2 and page.has_more
    texts = [item.content[0].text for item in client.responses.input_items.list(answer.id, order="asc", limit=2)]
    assert texts == ["Line 0", "Line 1", "Line 2"]


def test_delete(client: OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="Hello there")
    client.responses.delete(answer.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(answer.id)


def test_not_stored(client: OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="Hello there", store=False)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(answer.id)


def test_previous_response(client: OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="My name is Anna.")
    second = client.responses.create(model=model, input="Go on.", previous_response_id=first.id)
    alone = client.responses.create(model=model, input="Go on.")
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > alone.usage.input_tokens


def test_unknown_previous_response(client: OpenAI, model: str) -> None:
    with pytest.raises((NotFoundError, BadRequestError)):
        client.responses.create(model=model, input="Go on.", previous_response_id="resp_" + "0" * 32)


def test_function_call(client: OpenAI, model: str) -> None:
    asked = {"model": model, "tools": [WEATHER], "max_output_tokens": 200}
    first = client.responses.create(**asked, input="What is the weather in Paris?", tool_choice="required")
    call = next(item for item in first.output if item.type == "function_call")
    assert call.name == "get_weather" and "city" in json.loads(call.arguments)
    result = [{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}]
    second = client.responses.create(**asked, input=result, previous_response_id=first.id)
    assert second.output_text


def test_function_call_streamed(client: OpenAI, model: str) -> None:
    asked = {"model": model, "tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_weather"}}
    events = list(client.responses.create(**asked, input="What is the weather in Paris?", stream=True))
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    mine = [event.delta for event in deltas if event.item_id == done.item_id]  # a real model may call twice
    assert "".join(mine) == done.arguments and "city" in json.loads(done.arguments)


def test_tool_choice_none(client: OpenAI, model: str) -> None:
    asked = {"model": model, "tools": [WEATHER], "tool_choice": "none", "max_output_tokens": 16}
    answer = client.responses.create(**asked, input="What is the weather in Paris?")
    assert all(item.type != "function_call" for item in answer.output)


def test_structured_output(client: OpenAI, model: str) -> None:
    form = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    answer = client.responses.create(model=model, input="My friend 'Anna' is 31.", text=form, max_output_tokens=200)
    assert set(json.loads(answer.output_text)) == {"name", "age"}


def test_max_output_tokens(client: OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="Count to 500", max_output_tokens=16)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"


def test_unknown_parameter_is_refused_by_name(client: OpenAI, model: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        client.responses.create(model=model, input="Hello", extra_body={"no_such_parameter": 1})
    assert "no_such_parameter" in str(raised.value)


def test_built_in_tool_is_refused_by_name(client: OpenAI, model: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        client.responses.create(model=model, input="Hello", tools=[{"type": "web_search"}])
    assert "web_search" in str(raised.value)


def test_unknown_model(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as raised:
        client.responses.create(model="no-such-model", input="Hello")
    assert raised.value.code == "model_not_found"


def test_background(client: OpenAI, model: str) -> None:
    begun = client.responses.create(model=model, input="Hello there", temperature=0, background=True)
    assert begun.status in ("queued", "in_progress") and begun.background
    done = until(lambda: client.responses.retrieve(begun.id), ENDS)
    assert done.status == "completed" and done.output_text


def test_background_stream_resumes(client: OpenAI, model: str) -> None:
    asked = {"model": model, "input": "Count to 20", "temperature": 0, "max_output_tokens": 200}
    events = list(client.responses.create(**asked, background=True, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")  # a small model may not find an end
    cut = events[3].sequence_number
    again = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=cut))
    assert [event.sequence_number for event in again] == [e.sequence_number for e in events if e.sequence_number > cut]
    assert again[-1].response.output_text == events[-1].response.output_text


def test_background_cancel(client: OpenAI, model: str) -> None:
    begun = client.responses.create(model=model, input="Please take 20 seconds for this.", background=True)
    assert client.responses.cancel(begun.id).id == begun.id
    ended = until(lambda: client.responses.retrieve(begun.id), ENDS)
    assert ended.status == "cancelled"


def test_cancel_of_a_foreground_response_is_refused(client: OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="Hello there")
    with pytest.raises(BadRequestError):
        client.responses.cancel(answer.id)
