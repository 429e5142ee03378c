"""Completions of texts on the real model, through the official client."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.models.conftest import SMOLLM2, Server

FRANCE = "The capital of France is"


@pytest.fixture
def client(model_server: Server) -> OpenAI:
    return OpenAI(base_url=model_server.api, api_key="none", max_retries=0)


def ask(client: OpenAI, **change: Any) -> Any:
    return client.completions.create(
        **{"model": SMOLLM2, "prompt": FRANCE, "temperature": 0, "max_tokens": 6, **change}
    )


def test_a_text_goes_on(client: OpenAI) -> None:
    answer = ask(client)
    assert answer.object == "text_completion"
    assert answer.choices[0].text.startswith(" Paris")  # with its white space
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 6)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_a_stream_adds_up(client: OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == ask(client).choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 6


def test_a_stop_is_no_part_of_the_text(client: OpenAI) -> None:
    choice = ask(client, prompt="1, 2, 3, 4,", stop=" 8", max_tokens=40, logprobs=0).choices[0]
    assert (choice.text, choice.finish_reason) == (" 5, 6, 7,", "stop")
    assert "".join(choice.logprobs.tokens) == choice.text


def test_prompts_have_their_choices_one_after_the_other(client: OpenAI) -> None:
    count = "1, 2, 3, 4,"
    answer = ask(client, prompt=[FRANCE, count], n=2, temperature=0, seed=1)
    france, count_on = ask(client).choices[0].text, ask(client, prompt=count).choices[0].text
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [france, france, count_on, count_on]
    assert answer.usage.completion_tokens == 24
    alone = [ask(client, prompt=prompt).usage.prompt_tokens for prompt in (FRANCE, count)]
    assert answer.usage.prompt_tokens == sum(alone)


def test_an_echo_says_the_prompt_first_with_its_probabilities(client: OpenAI) -> None:
    choice = ask(client, echo=True, logprobs=2, max_tokens=2).choices[0]
    assert choice.text.startswith(f"{FRANCE} Paris")
    tokens = choice.logprobs
    assert "".join(tokens.tokens) == choice.text
    assert [choice.text[at:][: len(token)] for at, token in zip(tokens.text_offset, tokens.tokens)] == tokens.tokens  # noqa: B905
    assert tokens.token_logprobs[0] is None
    assert all(value < 0 for value in tokens.token_logprobs[1:])
    assert [len(top) for top in tokens.top_logprobs[1:]] == [2] * (len(tokens.tokens) - 1)


def test_the_prompt_alone_is_judged_as_it_is_when_it_is_generated(client: OpenAI) -> None:
    generated = ask(client, logprobs=0).choices[0]
    judged = ask(client, prompt=FRANCE + generated.text, echo=True, logprobs=0, max_tokens=0)
    assert judged.choices[0].text == FRANCE + generated.text
    assert judged.usage.completion_tokens == 0
    known = judged.choices[0].logprobs.token_logprobs[-6:]
    # Taken in one by one or all at once: llama.cpp's sums differ a little.
    assert known == pytest.approx(generated.logprobs.token_logprobs, abs=0.15)


def test_tokens_are_a_prompt_too(client: OpenAI) -> None:
    answer = ask(client, prompt=[504, 3575], echo=True)  # 'The' and its like, whatever the tokenizer says
    assert answer.usage.prompt_tokens == 2
    assert ask(client, prompt=[[504, 3575], [504]], max_tokens=1).choices[1].text
    with pytest.raises(openai.BadRequestError, match="'prompt' has the token 900000"):
        ask(client, prompt=[900_000])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"suffix": "."}, "'suffix' is not supported"),
        ({"best_of": 2}, "'best_of' is not supported beyond 'n'"),
        ({"logprobs": 6}, "'logprobs'"),
        ({"prompt": []}, "'prompt'"),
        ({"prompt": 5}, "'prompt': must be a text, its tokens, or a list of either"),
        ({"prompt": [[1], [True]]}, "'prompt': must be a text"),
        ({"prompt": ["a"] * 100, "n": 2}, "'prompt' and 'n' make more than 128 choices"),
        ({"prompt": "word " * 1100}, "the context 1024"),
        ({"extra_body": {"messages": []}}, "'messages' is not supported"),
    ],
)
def test_what_can_not_be_meant_is_refused_by_name(change: dict[str, Any], why: str, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **change)
    assert why in caught.value.message
