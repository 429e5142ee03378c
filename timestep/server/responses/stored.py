"""Responses that were answered in the foreground: whole objects, with their input items, in our database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from timestep.agents.responses.items import Item
from timestep.agents.responses.request import ResponseRequest

if TYPE_CHECKING:
    from timestep.database.engine import Database


@dataclass(frozen=True)
class Stored:
    """A response as it stands, and its input items, those of earlier responses included."""

    response: dict[str, Any]
    items: list[Item]


@dataclass(frozen=True)
class Earlier:
    """What was said before a response; of a conversation, the number of the last of it."""

    items: list[Item]
    behind: int | None = None


async def save(
    database: Database, asked: ResponseRequest, response: dict[str, Any], earlier: Earlier, items: list[Item]
) -> None:
    """Keep a response, and add it to its conversation where it has one; both or neither.

    Raises:
        ConversationChangedError: others have added to the conversation since it was read.
        NotFoundError: the conversation is no more.
    """
    from timestep.agents.responses import conversations
    from timestep.database.models import ResponseRow

    row = ResponseRow(
        id=response["id"],
        request=asked.model_dump(mode="json", exclude={"input"}, exclude_none=True),
        items=[*earlier.items, *items],
        response=response,
        previous_response_id=asked.previous_response_id,
        conversation_id=asked.conversation_id,
    )
    async with database.session() as session:
        if response["store"]:
            session.add(row)
        if asked.conversation_id is not None and response["status"] != "failed":
            said = [*items, *response["output"]]
            await conversations.add(session, asked.conversation_id, said, earlier.behind)


async def load(database: Database, id: str) -> Stored | None:
    """The response of that id; None where it was none of the foreground's."""
    from timestep.database.models import ResponseRow

    async with database.session() as session:
        row = await session.get(ResponseRow, id)
    return None if row is None or row.response is None else Stored(row.response, row.items)


async def delete(database: Database, id: str) -> bool:
    """Whether there was one to be deleted."""
    from sqlalchemy import delete as delete_rows

    from timestep.database.models import ResponseRow

    async with database.session() as session:
        chosen = delete_rows(ResponseRow).where(ResponseRow.id == id).returning(ResponseRow.id)
        return await session.scalar(chosen) is not None
