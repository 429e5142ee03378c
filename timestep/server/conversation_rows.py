"""Conversations and their items as rows: read, changed and deleted, each in one transaction."""

from typing import Any
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from timestep.agents.responses import conversations
from timestep.agents.responses.items import Item, is_id
from timestep.database.engine import Database
from timestep.database.models import ConversationItemRow, ConversationRow
from timestep.errors import NotFoundError

KIND = "conversation"


async def create(database: Database, metadata: dict[str, str], items: list[Item]) -> dict[str, Any]:
    """A conversation that begins with these items."""
    async with database.session() as session:
        row = ConversationRow(id=f"conv_{uuid4().hex}", notes=metadata)
        session.add(row)
        await session.flush()
        await session.refresh(row)
        await conversations.add(session, row.id, items)
        return _shown(row)


async def read(database: Database, id: str) -> dict[str, Any]:
    """The conversation. NotFoundError: there is none."""
    async with database.session() as session:
        return _shown(await _row(session, id))


async def update(database: Database, id: str, metadata: dict[str, str]) -> dict[str, Any]:
    """The conversation with this metadata instead of its own. NotFoundError: there is none."""
    async with database.session() as session:
        row = await _row(session, id)
        row.notes = metadata
        return _shown(row)


async def delete(database: Database, id: str) -> None:
    """Delete the conversation with its items. NotFoundError: there is none."""
    async with database.session() as session:
        await session.delete(await _row(session, id))


async def items(database: Database, id: str, limit: int, *, after: str | None, descending: bool) -> list[Item]:
    """At most ``limit`` items, those behind the item ``after``. NotFoundError: no such conversation or item."""
    number = ConversationItemRow.number
    chosen = select(ConversationItemRow.item).where(ConversationItemRow.conversation_id == id)
    async with database.session() as session:
        await _row(session, id)
        if after is not None:
            place = (await _item(session, id, after)).number
            chosen = chosen.where(number < place if descending else number > place)
        ordered = chosen.order_by(number.desc() if descending else number)
        return list(await session.scalars(ordered.limit(limit)))


async def item(database: Database, id: str, item_id: str) -> Item:
    """One item. NotFoundError: no such conversation or item."""
    async with database.session() as session:
        await _row(session, id)
        found: Item = (await _item(session, id, item_id)).item
        return found


async def delete_item(database: Database, id: str, item_id: str) -> dict[str, Any]:
    """The conversation, after one of its items was deleted. NotFoundError: no such conversation or item."""
    async with database.session() as session:
        row = await _row(session, id)
        await session.delete(await _item(session, id, item_id))
        return _shown(row)


async def _row(session: AsyncSession, id: str) -> ConversationRow:
    row = await session.get(ConversationRow, id) if is_id(id) else None
    if row is None:
        raise NotFoundError(KIND, id)
    return row


async def _item(session: AsyncSession, id: str, item_id: str) -> ConversationItemRow:
    row = await session.get(ConversationItemRow, (id, item_id)) if is_id(item_id) else None
    if row is None:
        raise NotFoundError("item", item_id)
    return row


def _shown(row: ConversationRow) -> dict[str, Any]:
    created = int(row.created_at.timestamp())
    return {"id": row.id, "object": "conversation", "created_at": created, "metadata": row.notes}
