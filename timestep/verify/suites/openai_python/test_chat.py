"""POST /v1/chat/completions."""

import json

import pytest
from conftest import CLOCK, PERSON, WEATHER
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "Hello there"}]
FORECAST = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(BaseModel):
    name: str
    age: int


def test_whole(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO)
    assert answer.object == "chat.completion" and answer.id
    assert answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_stream(client: OpenAI, model: str) -> None:
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_says_what_the_whole_says(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole


def test_stream_with_usage(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def _streamed(client: AsyncOpenAI, model: str) -> str:
    async with client:
        stream = await client.chat.completions.create(model=model, messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


def test_async_stream(async_client: AsyncOpenAI, model: str) -> None:
    import asyncio

    assert asyncio.run(_streamed(async_client, model))


def test_stream_helper(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=HELLO) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds and final.choices[0].message.content


def test_n_choices(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO, n=3, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in answer.choices)


def test_n_choices_streamed(client: OpenAI, model: str) -> None:
    chunks = client.chat.completions.create(model=model, messages=HELLO, n=2, max_tokens=8, stream=True)
    assert {chunk.choices[0].index for chunk in chunks if chunk.choices} == {0, 1}


def test_max_tokens(client: OpenAI, model: str) -> None:
    asked = [{"role": "user", "content": "Count to 100, please."}]
    answer = client.chat.completions.create(model=model, messages=asked, max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


def test_max_completion_tokens(client: OpenAI, model: str) -> None:
    asked = [{"role": "user", "content": "Count to 100, please."}]
    answer = client.chat.completions.create(model=model, messages=asked, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


def test_stop(client: OpenAI, model: str) -> None:
    asked = [{"role": "user", "content": "Count to 20"}]
    answer = client.chat.completions.create(model=model, messages=asked, stop=["7"], temperature=0)
    assert "6" in answer.choices[0].message.content and "7" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_seed(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "seed": 7, "temperature": 1, "max_tokens": 16}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content


def test_logprobs(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    entries = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert entries and all(entry.logprob <= 0 and 1 <= len(entry.top_logprobs) <= 2 for entry in entries)


def test_logprobs_streamed(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "max_tokens": 4, "logprobs": True, "stream": True}
    chunks = list(client.chat.completions.create(**asked))
    entries = [c.choices[0].logprobs.content for c in chunks if c.choices and c.choices[0].logprobs]
    assert any(entries)


def test_roles_and_parts(client: OpenAI, model: str) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]},
        {"role": "assistant", "content": "Yes?", "name": "helper"},
        {"role": "user", "content": "Go on.", "name": "anna"},
    ]
    assert client.chat.completions.create(model=model, messages=messages, max_tokens=8).choices[0].message.content


def test_conversation_is_read(client: OpenAI, model: str) -> None:
    short = client.chat.completions.create(model=model, messages=HELLO, max_tokens=1)
    earlier = [{"role": "user", "content": "One two three"}, {"role": "assistant", "content": "Four five six"}]
    longer = client.chat.completions.create(model=model, messages=[*earlier, *HELLO], max_tokens=1)
    assert longer.usage.prompt_tokens > short.usage.prompt_tokens


def test_tool_required(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": FORECAST, "tools": [WEATHER, CLOCK], "tool_choice": "required"}
    choice = client.chat.completions.create(**asked, max_tokens=200).choices[0]
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert call.type == "function" and call.id and isinstance(json.loads(call.function.arguments), dict)


def test_tool_by_name(client: OpenAI, model: str) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    asked = {"model": model, "messages": FORECAST, "tools": [WEATHER, CLOCK], "tool_choice": named}
    calls = client.chat.completions.create(**asked, max_tokens=200).choices[0].message.tool_calls
    assert {call.function.name for call in calls} == {"get_time"}
    assert json.loads(calls[0].function.arguments)["zone"] in ("UTC", "CET")


def test_tool_among_allowed(client: OpenAI, model: str) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    asked = {"model": model, "messages": FORECAST, "tools": [WEATHER, CLOCK], "tool_choice": choice}
    calls = client.chat.completions.create(**asked, max_tokens=200).choices[0].message.tool_calls
    assert {call.function.name for call in calls} == {"get_time"}


def test_tool_none(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": FORECAST, "tools": [WEATHER], "tool_choice": "none", "max_tokens": 16}
    assert not client.chat.completions.create(**asked).choices[0].message.tool_calls


def test_tool_auto(client: OpenAI, model: str) -> None:
    calls = (
        client.chat.completions.create(model=model, messages=FORECAST, tools=[WEATHER], max_tokens=200)
        .choices[0]
        .message.tool_calls
    )
    assert json.loads(calls[0].function.arguments) == {"city": "Paris"}


def test_tools_in_parallel(client: OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "Use get_weather for 'Rome' and get_time in CET."}]
    calls = (
        client.chat.completions.create(model=model, messages=messages, tools=[WEATHER, CLOCK], max_tokens=200)
        .choices[0]
        .message
    )
    assert {call.function.name for call in calls.tool_calls} == {"get_weather", "get_time"}
    assert len({call.id for call in calls.tool_calls}) == 2


def test_tools_not_in_parallel(client: OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "Use get_weather for 'Rome' and get_time in CET."}]
    asked = {"model": model, "messages": messages, "tools": [WEATHER, CLOCK], "tool_choice": "required"}
    message = client.chat.completions.create(**asked, parallel_tool_calls=False, max_tokens=200).choices[0].message
    assert len(message.tool_calls) == 1


def test_tools_streamed(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": FORECAST, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 200}
    with client.chat.completions.stream(**asked) as stream:
        call = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and "city" in json.loads(call.function.arguments)


def test_tool_results(client: OpenAI, model: str) -> None:
    asked = {"model": model, "tools": [WEATHER], "max_tokens": 200}
    choice = client.chat.completions.create(**asked, messages=FORECAST, tool_choice="required").choices[0]
    calls = choice.message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in calls]
    said = client.chat.completions.create(**asked, messages=[*FORECAST, choice.message, *results])
    assert said.choices[0].message.content


def test_json_object(client: OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "Answer in JSON with the key 'colour': what is the sky's?"}]
    form = {"type": "json_object"}
    answer = client.chat.completions.create(model=model, messages=messages, response_format=form, max_tokens=200)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_json_schema(client: OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "My friend 'Anna' is 31."}]
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = client.chat.completions.create(model=model, messages=messages, response_format=form, max_tokens=200)
    assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}


def test_parse(client: OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "My friend 'Anna' is 31."}]
    asked = {"model": model, "messages": messages, "response_format": Person, "max_tokens": 200}
    assert isinstance(client.chat.completions.parse(**asked).choices[0].message.parsed, Person)


def test_logit_bias_is_taken(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "logit_bias": {"11": -100}, "max_tokens": 8}
    assert client.chat.completions.create(**asked).choices[0].message.content


def test_what_changes_no_answer_is_taken(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "user": "u", "metadata": {"a": "b"}, "max_tokens": 8}
    assert client.chat.completions.create(**asked).choices[0].message.content


def test_unknown_parameter_is_refused_by_name(client: OpenAI, model: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        client.chat.completions.create(model=model, messages=HELLO, extra_body={"no_such_parameter": 1})
    assert "no_such_parameter" in str(raised.value)


def test_audio_is_refused_by_name(client: OpenAI, model: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        client.chat.completions.create(
            model=model, messages=HELLO, modalities=["audio"], audio={"voice": "ash", "format": "wav"}
        )
    assert str(raised.value.param).partition(".")[0] in ("modalities", "audio")


def test_unknown_model(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as raised:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert raised.value.code == "model_not_found"


def test_no_messages(client: OpenAI, model: str) -> None:
    with pytest.raises(BadRequestError):
        client.chat.completions.create(model=model, messages=[])
