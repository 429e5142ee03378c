"""POST /v1/embeddings."""

import math

import pytest
from openai import BadRequestError, NotFoundError, OpenAI


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_one_text(client: OpenAI, embedding_model: str) -> None:
    answer = client.embeddings.create(model=embedding_model, input="A cat sat on the mat.")
    assert answer.data[0].object == "embedding" and len(answer.data[0].embedding) > 0
    assert answer.usage.prompt_tokens > 0


def test_meaning(client: OpenAI, embedding_model: str) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Quarterly tax revenue rose."]
    cat, kitten, tax = (one.embedding for one in client.embeddings.create(model=embedding_model, input=texts).data)
    assert _cosine(cat, kitten) > _cosine(cat, tax)


def test_floats_are_what_base64_says(client: OpenAI, embedding_model: str) -> None:
    asked = {"model": embedding_model, "input": "The same text."}
    floats = client.embeddings.create(**asked, encoding_format="float").data[0].embedding
    coded = client.embeddings.create(**asked).data[0].embedding  # the client asks for base64 and decodes it
    assert floats == pytest.approx(coded, abs=1e-6)


def test_base64_as_it_comes(client: OpenAI, embedding_model: str) -> None:
    coded = client.embeddings.create(model=embedding_model, input="Text.", encoding_format="base64").data[0].embedding
    assert isinstance(coded, str)


def test_dimensions(client: OpenAI, embedding_model: str) -> None:
    answer = client.embeddings.create(model=embedding_model, input="Text.", dimensions=64)
    assert len(answer.data[0].embedding) == 64


def test_many_keep_their_order(client: OpenAI, embedding_model: str) -> None:
    texts = [f"Text number {number}" for number in range(50)]
    many = client.embeddings.create(model=embedding_model, input=texts).data
    assert [one.index for one in many] == list(range(50))
    alone = client.embeddings.create(model=embedding_model, input=texts[31]).data[0].embedding
    assert many[31].embedding == pytest.approx(alone, abs=1e-5)


def test_tokens(client: OpenAI, embedding_model: str) -> None:
    assert client.embeddings.create(model=embedding_model, input=[1212, 318, 257]).data[0].embedding


def test_empty_input(client: OpenAI, embedding_model: str) -> None:
    with pytest.raises(BadRequestError):
        client.embeddings.create(model=embedding_model, input=[])


def test_unknown_model(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.embeddings.create(model="no-such-model", input="Text.")
