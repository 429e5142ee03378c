"""The Responses API through the official client, on the running service: answered at once, and by steps."""

import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.conftest import Service
from tests.server.kills import kill_server, until

MODEL = "local/assistant"
SHORT: dict[str, Any] = {"model": MODEL, "max_output_tokens": 12, "temperature": 0}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
ENDS = ("response.completed", "response.incomplete", "response.failed")


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=service.api, api_key="none", max_retries=0) as client:
        yield client


def checked(events: list[Any]) -> Any:
    """The last event's response; all are as the client's own types say, and numbered without a gap."""
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event.model_dump())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events if event.type in ENDS] == [events[-1].type]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.output
    return events[-1].response


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def words(items: Iterable[Any]) -> list[str]:
    return [item.content[0].text for item in items]


def test_a_response_is_answered_stored_and_found_until_it_is_deleted(client: OpenAI) -> None:
    response = client.responses.create(input="Say hello.", metadata={"topic": "greeting"}, **SHORT)
    assert response.status in ("completed", "incomplete") and response.output_text
    assert response.usage is not None and response.usage.output_tokens > 0
    assert response.metadata == {"topic": "greeting"}
    assert client.responses.retrieve(response.id) == response
    told = list(client.responses.retrieve(response.id, stream=True))
    assert checked(told) == response
    assert list(client.responses.retrieve(response.id, stream=True, starting_after=2)) == told[3:]
    (late,) = client.responses.retrieve(response.id, stream=True, starting_after=1000)
    assert late.type in ENDS and late.response == response and late.sequence_number == 1001  # type: ignore[union-attr]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError, match=response.id):
        client.responses.retrieve(response.id)


def test_a_streamed_response_says_what_the_whole_one_says(client: OpenAI) -> None:
    events = list(client.responses.create(input="Say hello.", stream=True, **SHORT))
    streamed = checked(events)
    assert text_of(events) == streamed.output_text
    assert streamed.output_text == client.responses.create(input="Say hello.", **SHORT).output_text
    assert client.responses.retrieve(streamed.id) == streamed


def test_what_is_not_to_be_stored_is_not_found(client: OpenAI) -> None:
    response = client.responses.create(input="Say hello.", store=False, **SHORT)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input="And now?", previous_response_id=response.id, **SHORT)


def test_an_answer_cut_by_its_limit_is_incomplete_and_says_why(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="Tell me about the ocean.", max_output_tokens=3)
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


@pytest.mark.parametrize("background", [False, True])
def test_the_client_runs_the_functions_that_are_called(client: OpenAI, background: bool) -> None:
    choice: Any = {"type": "function", "name": "get_weather"}
    asked: dict[str, Any] = {"model": MODEL, "tools": [WEATHER], "parallel_tool_calls": False, "temperature": 0}
    made = client.responses.create(
        input="Weather in Paris?", tool_choice=choice, background=background, stream=True, **asked
    )
    called = checked(list(made))
    call = called.output[0]
    assert call.type == "function_call" and call.name == "get_weather" and "city" in json.loads(call.arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    answer = client.responses.create(
        input=[result], previous_response_id=called.id, max_output_tokens=12, tool_choice="none", **asked
    )
    assert answer.output_text and answer.previous_response_id == called.id
    listed = client.responses.input_items.list(answer.id, order="asc", limit=2)
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]  # of two pages


class Person(BaseModel):
    name: str
    adult: bool


def test_structured_output_is_held_to_its_schema(client: OpenAI) -> None:
    parsed = client.responses.parse(model=MODEL, input="Ada is grown up.", text_format=Person, temperature=0)
    assert isinstance(parsed.output_parsed, Person)


def test_the_probabilities_of_tokens_come_where_they_are_asked_for(client: OpenAI) -> None:
    include: Any = ["message.output_text.logprobs"]
    response = client.responses.create(input="Say hello.", include=include, top_logprobs=2, **SHORT)
    tokens: Any = response.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens).startswith(response.output_text[:5])
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    plain = client.responses.create(input="Say hello.", **SHORT)
    assert plain.output[0].content[0].logprobs == []


def traces(service: Service, id: str) -> list[Path]:
    """What the storage has of a response's step by its name."""
    return list((service.home / "storage").rglob(f"{UUID(id.removeprefix('resp_'))}.json"))


def test_a_conversation_remembers_what_responses_say(service: Service, client: OpenAI) -> None:
    conversation = client.conversations.create(items=[{"role": "user", "content": "My name is Ada."}])
    first = client.responses.create(input="Who am I?", conversation=conversation.id, **SHORT)
    assert first.conversation is not None and first.conversation.id == conversation.id
    second = client.responses.create(input="And you?", conversation=conversation.id, background=True, **SHORT)
    checked(list(client.responses.retrieve(second.id, stream=True)))
    said = words(client.conversations.items.list(conversation.id, order="asc"))
    assert said[0] == "My name is Ada." and said[1] == "Who am I?" and said[2] == first.output_text
    assert said[3:] == ["And you?", client.responses.retrieve(second.id).output_text]
    assert words(client.responses.input_items.list(second.id, order="asc")) == said[:4]
    assert traces(service, second.id)
    client.responses.delete(second.id)
    assert not traces(service, second.id)
    client.conversations.delete(conversation.id)
    assert client.responses.retrieve(first.id) == first
    with pytest.raises(openai.NotFoundError, match=conversation.id):
        client.responses.create(input="Still there?", conversation=conversation.id, **SHORT)


def test_an_answer_to_what_a_conversation_no_longer_ends_with_is_not_added(client: OpenAI) -> None:
    conversation = client.conversations.create(items=[{"role": "user", "content": "My name is Ada."}])
    late = client.responses.create(input="Who am I?", conversation=conversation.id, background=True, **SHORT)
    client.conversations.items.create(conversation.id, items=[{"role": "user", "content": "No, it is Eve."}])
    *_, last = client.responses.retrieve(late.id, stream=True)
    assert last.type == "response.failed" and last.response.error is not None
    assert conversation.id in last.response.error.message
    said = words(client.conversations.items.list(conversation.id, order="asc"))
    assert said == ["My name is Ada.", "No, it is Eve."]


@pytest.mark.parametrize("path", ["responses/resp_1", "conversations/conv_1", "models", "agents"])
def test_a_parameter_of_a_query_that_is_unknown_is_refused_by_name(service: Service, path: str) -> None:
    answer = httpx.get(f"{service.api}/{path}", params={"colour": "red"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "colour")


def test_what_is_not_implemented_or_absent_is_refused_by_name(client: OpenAI) -> None:
    def refused(**given: Any) -> tuple[int, Any]:
        with pytest.raises(openai.APIStatusError) as caught:
            client.responses.create(**{"input": "x", **SHORT, **given})
        body: Any = caught.value.body
        return caught.value.status_code, body["param"]

    assert refused(prompt={"id": "pmpt_1"}) == (400, "prompt")
    assert refused(tools=[{"type": "web_search"}]) == (400, "tools[0].type")
    assert refused(extra_body={"colour": "red"}) == (400, "colour")
    assert refused(temperature=3) == (400, "temperature")
    assert refused(model="local/asistant") == (404, "model")
    assert refused(model="local/asistant", background=True) == (404, "model")
    assert refused(model="agent/asistant")[0] == 404
    assert refused(previous_response_id="resp_none")[0] == 404
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(client.responses.create(input="x", **SHORT).id)


def resumed(client: OpenAI, id: str, after: int) -> list[Any]:
    """The rest of the stream; the server may need Prefect's client for a moment first."""

    def there() -> bool:
        try:
            return bool(client.responses.retrieve(id))
        except openai.APIError:
            return False

    until(there)
    return list(client.responses.retrieve(id, stream=True, starting_after=after))


def test_a_server_killed_in_the_middle_of_a_stream_loses_no_event_of_it(service: Service, client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "Tell me about the ocean.", "temperature": 0}
    came: list[Any] = []
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        for event in client.responses.create(background=True, stream=True, max_output_tokens=80, **asked):
            came.append(event)
            if event.type == "response.output_text.delta":
                kill_server(service)
    came += resumed(client, came[0].response.id, came[-1].sequence_number)
    response = checked(came)
    assert text_of(came) == response.output_text and len(came) > 10
    assert client.responses.retrieve(response.id) == response
    assert list(client.responses.retrieve(response.id, stream=True)) == came


def test_an_agent_whose_process_is_killed_answers_the_same_response(service: Service, client: OpenAI) -> None:
    gate, log = (service.agents.with_name(name) for name in ("gate", "calls.log"))
    gate.unlink(missing_ok=True)
    service.clear_calls()
    came: list[Any] = []
    for event in client.responses.create(model="agent/blocker", input="go", background=True, stream=True):
        came.append(event)
        if event.type == "response.output_item.done" and not gate.exists():
            until(lambda: "tool blocked" in service.calls)
            os.kill(_writer(log), signal.SIGKILL)
            gate.touch()
    response = checked(came)
    assert [item.type for item in response.output] == ["mcp_call", "mcp_call", "message"]
    assert [item.output for item in response.output[:2]] == ["remembered before", "opened"]
    assert response.output_text == "passed" and service.calls.count("tool blocked") == 2
    assert list(client.responses.retrieve(response.id, stream=True)) == came


def _writer(log: Path) -> int:
    return int(log.read_text().splitlines()[-1].rsplit(" ", 1)[1])


def test_an_agent_answers_in_the_foreground(client: OpenAI) -> None:
    response = client.responses.create(model="agent/planner", input="go")
    assert response.output_text == "all done" and len(response.output) == 4
    assert client.responses.retrieve(response.id) == response


def test_an_agent_whose_client_leaves_is_cancelled_unless_it_is_in_the_background(client: OpenAI) -> None:
    left: dict[bool, str] = {}
    for background in (True, False):
        with client.responses.create(model="agent/idler", input="go", stream=True, background=background) as events:
            left[background] = next(event.response.id for event in events if event.type == "response.in_progress")
    until(lambda: client.responses.retrieve(left[False]).status == "cancelled")
    assert client.responses.retrieve(left[True]).status == "in_progress"
    told_and_cancelled_and_deleted(client, left[True])


def told_and_cancelled_and_deleted(client: OpenAI, id: str) -> None:
    assert client.responses.cancel(id).status == "cancelled"
    assert checked(list(client.responses.retrieve(id, stream=True))).status == "cancelled"
    assert client.responses.cancel(id).status == "cancelled"
    client.responses.delete(id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id)
