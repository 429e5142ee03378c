"""GET /v1/models and its objects."""

import pytest
from openai import NotFoundError, OpenAI


def test_list_names_the_model(client: OpenAI, model: str) -> None:
    listed = list(client.models.list())
    assert model in {one.id for one in listed}
    assert all(one.object == "model" and isinstance(one.created, int) and one.owned_by for one in listed)


def test_list_names_the_embedding_model(client: OpenAI, embedding_model: str) -> None:
    assert embedding_model in {one.id for one in client.models.list()}


def test_retrieve(client: OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model


def test_retrieve_an_unknown_one(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as raised:
        client.models.retrieve("no-such-model")
    assert raised.value.code == "model_not_found"


def test_delete_an_unknown_one(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.models.delete("no-such-model")
