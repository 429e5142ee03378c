"""The model server over HTTP, through the official OpenAI client and the Agents SDK."""

import asyncio
import json
from typing import Any, Literal

import httpx
import openai
import pytest
from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

from tests.models.conftest import SMOLLM2, Server, wait_for
from timestep.models.files import WORDLLAMA
from timestep.models.request import ChatRequest

OCEAN: list[Any] = [{"role": "user", "content": "Tell me about the ocean."}]
NOW = {"type": "function", "function": {"name": "now"}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ALLOWED: dict[str, Any] = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK]}}

set_tracing_disabled(True)


@pytest.fixture
def client(model_server: Server) -> OpenAI:
    return OpenAI(base_url=model_server.api, api_key="none", max_retries=0)


def test_a_completion_is_what_the_client_expects(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=SMOLLM2, messages=OCEAN, temperature=0, max_tokens=16)
    assert answer.object == "chat.completion"
    assert answer.model == SMOLLM2
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert "ocean" in (answer.choices[0].message.content or "").lower()
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16
    extra = (answer.model_extra or {})["timestep"]
    assert extra["forced"] is False
    assert set(extra["timings"]) == {"prompt_seconds", "decode_seconds"}


def test_a_stream_adds_up_to_the_completion(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": OCEAN, "temperature": 0, "max_completion_tokens": 16}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 10  # token by token, not at the end
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "calculator"}}])
def test_a_call_is_the_same_streamed_and_whole(
    choice: Any, client: OpenAI, calling: list[Any], calculator: Any, clock: Any
) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": calling, "temperature": 0, "max_tokens": 80}
    ask |= {"tools": [calculator, clock], "tool_choice": choice, "parallel_tool_calls": False}
    whole = client.chat.completions.create(**ask)
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "calculator"
    assert json.loads(call.function.arguments) == {"expression": "8+5"}
    assert whole.choices[0].finish_reason == "tool_calls"
    assert (whole.model_extra or {})["timestep"]["forced"] is (choice != "auto")
    with client.chat.completions.stream(**{**ask, "tools": [calculator, clock]}) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert sum(event.type == "tool_calls.function.arguments.delta" for event in events) > 3
    (streamed,) = final.choices[0].message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments
    assert (streamed.function.name, final.choices[0].finish_reason) == ("calculator", "tool_calls")


def test_a_tool_that_may_not_be_called_is_not(client: OpenAI, calling: list[Any], calculator: Any) -> None:
    answer = client.chat.completions.create(
        model=SMOLLM2, messages=calling, tools=[calculator], tool_choice="none", temperature=0, max_tokens=40
    )
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


def test_of_all_tools_only_the_allowed_ones_are_called(
    client: OpenAI, calling: list[Any], calculator: Any, clock: Any
) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": calling, "tools": [calculator, clock], "temperature": 0}
    forced = client.chat.completions.create(**ask, tool_choice=ALLOWED, parallel_tool_calls=False)
    assert [call.function.name for call in forced.choices[0].message.tool_calls or []] == ["clock"]  # type: ignore[union-attr]
    free = ALLOWED | {"allowed_tools": {"mode": "auto", "tools": [CLOCK]}}
    answer = client.chat.completions.create(**ask, tool_choice=free, max_tokens=60)
    names = {call.function.name for call in answer.choices[0].message.tool_calls or []}  # type: ignore[union-attr]
    assert names <= {"clock"}


@pytest.mark.parametrize("streamed", [False, True])
def test_log_probabilities_are_the_models_own(streamed: bool, client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": OCEAN, "temperature": 0, "max_tokens": 8}
    ask |= {"logprobs": True, "top_logprobs": 3}
    if streamed:
        chunks = list(client.chat.completions.create(**ask, stream=True))
        choices = [chunk.choices[0] for chunk in chunks]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
    else:
        choice = client.chat.completions.create(**ask).choices[0]
        assert choice.logprobs is not None
        text, tokens = choice.message.content or "", choice.logprobs.content or []
    assert len(tokens) == 8
    assert "".join(token.token for token in tokens) == text
    for token in tokens:
        assert bytes(token.bytes or []).decode() == token.token
        likeliest = [other.logprob for other in token.top_logprobs]
        assert len(likeliest) == 3 and likeliest == sorted(likeliest, reverse=True)
        assert token.logprob == likeliest[0] <= 0  # greedy: what was picked is the likeliest


def test_log_probabilities_stay_with_the_text_that_a_stop_leaves(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": OCEAN, "temperature": 0, "max_tokens": 24, "logprobs": True}
    words = (client.chat.completions.create(**ask).choices[0].message.content or "").split()
    choice = client.chat.completions.create(**ask, stop=[words[4]]).choices[0]
    assert choice.logprobs is not None
    said = "".join(token.token for token in choice.logprobs.content or [])
    assert said.split() == words[:4] == (choice.message.content or "").split()


def test_a_bias_keeps_tokens_away(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": OCEAN, "temperature": 0, "max_tokens": 4}
    first = client.chat.completions.create(**ask, logprobs=True).choices[0].logprobs
    assert first is not None and first.content
    every = {str(token): -100 for token in range(1024)}
    biased = client.chat.completions.create(**ask, logit_bias=every).choices[0].message.content
    assert biased != "".join(token.token for token in first.content)


@pytest.mark.parametrize("streamed", [False, True])
def test_each_choice_has_the_next_seed(streamed: bool, client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": OCEAN, "temperature": 1.2, "max_tokens": 12}
    client.chat.completions.create(**ask)  # from here on each finds the same cache
    alone = [client.chat.completions.create(**ask, seed=seed) for seed in (7, 8, 9)]
    if streamed:
        texts = ["", "", ""]
        usage: dict[str, Any] = {"stream_options": {"include_usage": True}}
        for chunk in client.chat.completions.create(**ask, **usage, seed=7, n=3, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        counted = chunk.usage
    else:
        answer = client.chat.completions.create(**ask, seed=7, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        texts, counted = [choice.message.content or "" for choice in answer.choices], answer.usage
    assert texts == [answer.choices[0].message.content for answer in alone]
    assert counted is not None and alone[0].usage is not None
    assert counted.prompt_tokens == alone[0].usage.prompt_tokens
    assert counted.completion_tokens == 36


def test_what_changes_no_answer_is_taken(client: OpenAI) -> None:
    harmless: dict[str, Any] = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    harmless |= {"safety_identifier": "s", "prompt_cache_key": "k", "modalities": ["text"]}
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": OCEAN, "temperature": 0, "max_tokens": 4}
    said: Any = {"role": "assistant", "content": "Gladly.", "function_call": None}
    answer = client.chat.completions.create(
        **ask | {"messages": [*OCEAN, said, *OCEAN]}, **harmless, extra_body={"functions": None}
    )
    assert answer.choices[0].message.content


def test_a_response_format_is_held(client: OpenAI) -> None:
    sizes: Any = {"size": {"enum": ["small", "big"]}}
    schema = {"type": "object", "properties": sizes, "required": ["size"]}
    answer = client.chat.completions.create(
        model=SMOLLM2,
        messages=OCEAN,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content or "")["size"] in ("small", "big")


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_agents_sdk_runs_a_tool_over_it(streamed: bool, model_server: Server) -> None:
    asked: list[str] = []

    @function_tool
    def calculator(expression: Literal["17*23", "1+1"]) -> str:
        """Evaluates arithmetic."""  # of two values, so that a small model can't ramble to the limit
        asked.append(expression)
        return "391"

    client = AsyncOpenAI(base_url=model_server.api, api_key="none")
    model = OpenAIChatCompletionsModel(SMOLLM2, client)
    settings = ModelSettings(temperature=0, max_tokens=60, tool_choice="required", parallel_tool_calls=False)
    agent = Agent(
        name="a", instructions="Use the calculator.", model=model, tools=[calculator], model_settings=settings
    )
    if streamed:
        running = Runner.run_streamed(agent, "What is 17*23?", max_turns=3)
        names = [event.name async for event in running.stream_events() if event.type == "run_item_stream_event"]
        assert names[:2] == ["tool_called", "tool_output"]
        result: Any = running
    else:
        result = await Runner.run(agent, "What is 17*23?", max_turns=3)
    assert len(asked) == 1
    assert result.final_output  # the SDK asks freely once a tool has run
    assert sum(response.usage.output_tokens for response in result.raw_responses) > 0
    await client.close()


def test_models_are_listed_and_looked_up(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [SMOLLM2, WORDLLAMA]
    assert client.models.retrieve(SMOLLM2).id == SMOLLM2
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("change", "status", "why"),
    [
        ({"model": "smollm2-135m-instrukt"}, 404, "Did you mean 'smollm2-135m-instruct'?"),
        ({"model": "local/nobody@2"}, 404, "No model 'local/nobody@2'"),
        ({"model": "/absent/model.gguf"}, 400, "no such file"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 1100}]}, 400, "the context 1024"),
        ({"messages": [{"role": "boss", "content": "x"}]}, 400, "role 'boss'"),
        ({"temperature": 3}, 400, "temperature"),
        ({"n": 129}, 400, "'n'"),
        ({"top_logprobs": 3}, 400, "'top_logprobs' is only for requests with 'logprobs'"),
        ({"functions": [NOW]}, 400, "'functions' is not supported. Leave it out."),
        ({"extra_body": {"nonsense": 0}}, 400, "'nonsense' is not supported"),
        ({"service_tier": "flex"}, 400, "'service_tier'"),
        ({"store": True}, 400, "'store'"),
        ({"messages": [*OCEAN, {"role": "assistant", "function_call": {"name": "now"}}]}, 400, "'function_call' is"),
        ({"logit_bias": {"5": 101}}, 400, "logit_bias"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"tools": [{"type": "web_search"}]}, 400, "tool 0 is no function tool"),
        ({"tool_choice": "required"}, 400, "needs 'tools'"),
        ({"response_format": {"type": "xml"}}, 400, "'xml'"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "'messages.0': 'content' must be text"),
        ({"messages": [*OCEAN, {"role": "assistant", "tool_calls": ["x"]}]}, 400, "'messages.1': 'tool_calls' must"),
        ({"messages": [*OCEAN, {"role": "assistant", "tool_calls": 5}]}, 400, "'messages.1': 'tool_calls' must"),
        ({"messages": [*OCEAN, {"role": "assistant", "tool_calls": [{"function": "x"}]}]}, 400, "'tool_calls' must"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": "a"}}, 400, "tool_choice {"),
        ({"tools": [NOW], "tool_choice": 5}, 400, "tool_choice 5 is none of"),
        ({"tools": [NOW], "tool_choice": ALLOWED | {"allowed_tools": {"mode": "auto"}}}, 400, "is none of"),
        ({"tools": [NOW], "tool_choice": ALLOWED}, 404, "No tool 'clock'"),
        ({"tools": [{"type": "function", "function": {}}]}, 400, "tool 0 has the name None"),
        ({"response_format": {"type": "json_schema", "json_schema": "x"}}, 400, "json_schema.schema"),
        ({"model": "/absent\0.gguf"}, 400, "no such file"),
        ({"model": "http://\0/x.gguf"}, 400, "can't be fetched"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_gets_one_line_in_openais_shape(
    change: dict[str, Any], status: int, why: str, stream: bool, client: OpenAI
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": SMOLLM2, "messages": OCEAN, "stream": stream, **change})
    assert caught.value.status_code == status
    error = caught.value.response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert why in error["message"]
    assert "\n" not in error["message"]


HALF_A_PAIR = '{"model": "x", "messages": [{"role": "user", "content": "\\ud83d"}]}'


@pytest.mark.parametrize("body", ["", "{", "[]", "[" * 100_000, '{"model": 1, "messages": "x"}', HALF_A_PAIR])
def test_a_body_that_is_no_request_gets_400(body: str, model_server: Server) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{model_server.api}/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_nested_beyond_writing_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(ValidationError, match="can't be passed on as JSON"):
        ChatRequest.model_validate({"model": "x", "messages": [{"role": "user", "content": nested}]})


def test_arguments_that_are_no_json_are_only_text(client: OpenAI) -> None:
    call: Any = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "[" * 5000}}
    messages = [*OCEAN, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="the context 1024"):
        client.chat.completions.create(model=SMOLLM2, messages=messages)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_generation(stream: bool, model_server: Server) -> None:
    body = {"model": SMOLLM2, "messages": OCEAN, "stream": stream, "temperature": 1.5, "max_tokens": 900, "n": 99}
    with pytest.raises(httpx.TimeoutException), httpx.Client(timeout=httpx.Timeout(5, read=0.3)) as client:
        if not stream:
            client.post(f"{model_server.api}/chat/completions", json=body)
        with client.stream("POST", f"{model_server.api}/chat/completions", json=body) as response:
            next(response.iter_lines())
            raise httpx.ReadTimeout("left")
    wait_for(lambda: not httpx.get(f"{model_server.url}/health").json()["running"], 60)


async def test_requests_at_the_same_time_all_get_their_answers(model_server: Server) -> None:
    client = AsyncOpenAI(base_url=model_server.api, api_key="none")

    async def count(upto: int) -> str | None:
        ask: list[Any] = [{"role": "user", "content": f"Say the number {upto}."}]
        answer = await client.chat.completions.create(model=SMOLLM2, messages=ask, temperature=0, max_tokens=12)
        return answer.choices[0].message.content

    alone = [await count(n) for n in range(4)]
    assert await asyncio.gather(*map(count, range(4))) == alone
    await client.close()
