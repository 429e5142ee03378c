"""POST /v1/conversations and its items."""

import pytest
from openai import NotFoundError, OpenAI


def _message(text: str) -> dict[str, str]:
    return {"type": "message", "role": "user", "content": text}


def test_create_and_retrieve(client: OpenAI) -> None:
    made = client.conversations.create(metadata={"topic": "cats"})
    assert made.object == "conversation" and made.id.startswith("conv_")
    assert client.conversations.retrieve(made.id).metadata == {"topic": "cats"}


def test_update(client: OpenAI) -> None:
    made = client.conversations.create(metadata={"topic": "cats"})
    assert client.conversations.update(made.id, metadata={"topic": "dogs"}).metadata == {"topic": "dogs"}


def test_delete(client: OpenAI) -> None:
    made = client.conversations.create()
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        client.conversations.retrieve(made.id)


def test_items(client: OpenAI) -> None:
    made = client.conversations.create(items=[_message("First")])
    added = client.conversations.items.create(made.id, items=[_message("Second"), _message("Third")])
    assert len(added.data) == 2
    listed = list(client.conversations.items.list(made.id, order="asc", limit=1))
    assert [item.content[0].text for item in listed] == ["First", "Second", "Third"]
    one = client.conversations.items.retrieve(listed[1].id, conversation_id=made.id)
    assert one.content[0].text == "Second"
    client.conversations.items.delete(listed[1].id, conversation_id=made.id)
    assert len(list(client.conversations.items.list(made.id))) == 2


def test_responses_share_a_conversation(client: OpenAI, model: str) -> None:
    made = client.conversations.create()
    first = client.responses.create(model=model, input="My name is Anna.", conversation=made.id)
    second = client.responses.create(model=model, input="Go on.", conversation={"id": made.id})
    assert first.conversation.id == made.id and second.usage.input_tokens > first.usage.input_tokens
    assert len(list(client.conversations.items.list(made.id))) == 4


def test_unknown_conversation(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.conversations.retrieve("conv_" + "0" * 32)
