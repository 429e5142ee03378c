"""POST /v1/completions."""

import pytest
from openai import BadRequestError, OpenAI

PROMPT = "Once upon a time"


def test_whole(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=8)
    assert answer.object == "text_completion" and answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length") and answer.usage.prompt_tokens > 0


def test_stream(client: OpenAI, model: str) -> None:
    chunks = list(client.completions.create(model=model, prompt=PROMPT, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")


def test_echo(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=4, echo=True)
    assert answer.choices[0].text.startswith(PROMPT)


def test_several_prompts(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_n(client: OpenAI, model: str) -> None:
    assert len(client.completions.create(model=model, prompt=PROMPT, n=2, max_tokens=4).choices) == 2


def test_tokens_as_prompt(client: OpenAI, model: str) -> None:
    assert client.completions.create(model=model, prompt=[72, 101, 108], max_tokens=4).choices[0].text


def test_logprobs(client: OpenAI, model: str) -> None:
    found = client.completions.create(model=model, prompt=PROMPT, max_tokens=4, logprobs=2).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) > 0


def test_stop(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="Count to 20", stop="7", max_tokens=60, temperature=0)
    assert "7" not in answer.choices[0].text


def test_suffix_is_refused_by_name(client: OpenAI, model: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        client.completions.create(model=model, prompt=PROMPT, suffix="The end.")
    assert raised.value.param == "suffix"
