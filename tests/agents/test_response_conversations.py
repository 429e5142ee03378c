"""Items of conversations in a real database: what goes on from one state of a conversation is added to no other."""

from typing import Any

import pytest

from timestep.agents.responses import conversations
from timestep.agents.responses.conversations import ConversationChangedError
from timestep.agents.responses.items import complete
from timestep.database.engine import Database
from timestep.server.conversation_rows import create


def said(text: str) -> list[dict[str, Any]]:
    return complete(text)


async def words(database: Database, id: str) -> list[str]:
    items, _ = await conversations.history(database, id)
    return [item["content"][0]["text"] for item in items]


async def test_of_two_answers_to_the_same_history_the_second_is_refused(database: Database) -> None:
    for begun in ([], said("Hello")):
        id = (await create(database, {}, begun))["id"]
        _, behind = await conversations.history(database, id)
        first, second = said("first"), said("second")
        await conversations.append(database, id, first, behind)
        with pytest.raises(ConversationChangedError, match=id):
            await conversations.append(database, id, second, behind)
        assert await words(database, id) == [*(["Hello"] if begun else []), "first"]


async def test_a_step_that_comes_again_adds_its_items_once_and_is_not_refused_for_them(database: Database) -> None:
    id = (await create(database, {}, said("Hello")))["id"]
    _, behind = await conversations.history(database, id)
    answer = said("answer")
    await conversations.append(database, id, answer, behind)
    assert await conversations.append(database, id, answer, behind) == []
    assert await words(database, id) == ["Hello", "answer"]


async def test_what_goes_on_from_a_later_state_is_added(database: Database) -> None:
    id = (await create(database, {}, []))["id"]
    for text in ("one", "two"):
        _, behind = await conversations.history(database, id)
        await conversations.append(database, id, said(text), behind)
    assert await words(database, id) == ["one", "two"]
