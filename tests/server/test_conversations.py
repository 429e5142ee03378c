"""The Conversations API through the official client: on a server without Prefect, whose database is all it needs."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.server.stage import Stage, staged
from timestep.database.engine import Database


@pytest.fixture(scope="module")
def stage(postgres_url: str) -> Iterator[Stage]:
    with staged(postgres_url, "http") as stage:
        yield stage


@pytest.fixture
def client(stage: Stage, database: Database) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def said(*texts: str) -> Any:
    return [{"role": "user", "content": text} for text in texts]


def test_a_conversation_is_kept_changed_and_deleted(client: OpenAI, stage: Stage) -> None:
    made = client.conversations.create(metadata={"topic": "sea"})
    stage.end("http")
    stage.start("http")
    assert client.conversations.retrieve(made.id) == made
    assert client.conversations.update(made.id, metadata={"topic": "sky"}).metadata == {"topic": "sky"}
    assert client.conversations.retrieve(made.id).metadata == {"topic": "sky"}
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve("conv_%00")
    for gone in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError, match=made.id):
            gone(made.id)


def test_items_are_listed_by_pages_in_both_orders(client: OpenAI) -> None:
    made = client.conversations.create(items=said("1", "2"))
    added = client.conversations.items.create(made.id, items=said("3", "4", "5"))
    assert len(added.data) == 3 and added.has_more is False

    def listed(**chosen: Any) -> str:
        return "".join(item.content[0].text for item in client.conversations.items.list(made.id, **chosen))  # type: ignore[union-attr, index]

    assert listed() == "54321" and listed(order="asc", limit=2) == "12345"  # the client asks for each page
    first = client.conversations.items.list(made.id, order="asc", limit=2)
    assert first.has_more and first.last_id == first.data[-1].id
    assert listed(order="asc", after=first.last_id) == "345" and listed(after=first.last_id) == "1"


def test_an_item_is_found_and_deleted_by_its_id(client: OpenAI) -> None:
    made = client.conversations.create(items=said("1", "2"))
    newest = client.conversations.items.list(made.id).data[0]
    assert client.conversations.items.retrieve(str(newest.id), conversation_id=made.id) == newest
    assert client.conversations.items.delete(str(newest.id), conversation_id=made.id).id == made.id
    with pytest.raises(openai.NotFoundError, match=str(newest.id)):
        client.conversations.items.retrieve(str(newest.id), conversation_id=made.id)


def test_items_are_added_all_or_none(client: OpenAI) -> None:
    made = client.conversations.create(items=[{"id": "msg_1", "role": "user", "content": "1", "type": "message"}])  # type: ignore[list-item]
    twice: Any = [*said("2"), {"id": "msg_1", "role": "user", "content": "1"}]
    with pytest.raises(openai.ConflictError, match="msg_1"):
        client.conversations.items.create(made.id, items=twice)
    assert len(client.conversations.items.list(made.id).data) == 1


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "computer_call"}, "items[0].type"),
        ({"role": "robot", "content": "x"}, "items[0].role"),
        ({"role": "user", "content": 3}, "items[0].content"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "items[0].content[0].type"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "items[0].call_id"),
    ],
)
def test_items_that_no_model_can_be_told_are_refused_by_name(client: OpenAI, item: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.conversations.create(items=[item])
    body: Any = caught.value.body
    assert body["param"] == param
