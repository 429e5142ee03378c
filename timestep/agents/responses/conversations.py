"""The items of conversations, in our database: what was said before, and what is added at once or not at all."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from timestep.agents.responses.items import Item, is_id
from timestep.database.engine import Database
from timestep.database.models import ConversationItemRow, ConversationRow
from timestep.errors import NotFoundError


async def history(database: Database, conversation_id: str) -> list[Item]:
    """The conversation's items in their order.

    Raises:
        NotFoundError: there is no such conversation.
        ServiceUnavailableError: the database is away.
    """
    async with database.session() as session:
        if not is_id(conversation_id) or await session.get(ConversationRow, conversation_id) is None:
            raise NotFoundError("conversation", conversation_id)
        chosen = select(ConversationItemRow.item).where(ConversationItemRow.conversation_id == conversation_id)
        return list(await session.scalars(chosen.order_by(ConversationItemRow.number)))


async def append(database: Database, conversation_id: str, items: Sequence[Item]) -> list[Item]:
    """Add items in a transaction of their own; see :func:`add`. ServiceUnavailableError: the database is away."""
    async with database.session() as session:
        return await add(session, conversation_id, items)


async def add(session: AsyncSession, conversation_id: str, items: Sequence[Item]) -> list[Item]:
    """Add items; those whose ids are there already are left as they are. Returns what was added.

    Raises:
        NotFoundError: there is no such conversation (any more).
    """
    # Two that add at the same time do so one after the other, so that the items of each stay together.
    found = select(ConversationRow.id).where(ConversationRow.id == conversation_id).with_for_update()
    if not is_id(conversation_id) or await session.scalar(found) is None:
        raise NotFoundError("conversation", conversation_id)
    added: list[Item] = []
    for item in items:
        row = {"conversation_id": conversation_id, "id": item["id"], "item": item}
        done = insert(ConversationItemRow).values(row).on_conflict_do_nothing().returning(ConversationItemRow.id)
        if await session.scalar(done) is not None:
            added.append(item)
    return added
