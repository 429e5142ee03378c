"""The items of conversations, in our database: what was said before, and what is added at once or not at all."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from timestep.agents.responses.items import Item, is_id
from timestep.database.engine import Database
from timestep.database.models import ConversationItemRow, ConversationRow
from timestep.errors import ConflictError, NotFoundError


class ConversationChangedError(ConflictError):
    """A conversation to which others have added since it was read."""

    code = "conversation_locked"

    def __init__(self, conversation_id: str) -> None:
        super().__init__(
            f"Conversation '{conversation_id}' got other items while this was answered. Ask again, behind them."
        )


async def history(database: Database, conversation_id: str) -> tuple[list[Item], int]:
    """The conversation's items in their order, and the number of the last: 0 where there is none.

    Raises:
        NotFoundError: there is no such conversation.
        ServiceUnavailableError: the database is away.
    """
    async with database.session() as session:
        if not is_id(conversation_id) or await session.get(ConversationRow, conversation_id) is None:
            raise NotFoundError("conversation", conversation_id)
        columns = (ConversationItemRow.item, ConversationItemRow.number)
        chosen = select(*columns).where(ConversationItemRow.conversation_id == conversation_id)
        rows = (await session.execute(chosen.order_by(ConversationItemRow.number))).all()
        return [row.item for row in rows], rows[-1].number if rows else 0


async def append(
    database: Database, conversation_id: str, items: Sequence[Item], behind: int | None = None
) -> list[Item]:
    """Add items in a transaction of their own; see :func:`add`. ServiceUnavailableError: the database is away."""
    async with database.session() as session:
        return await add(session, conversation_id, items, behind)


async def add(
    session: AsyncSession, conversation_id: str, items: Sequence[Item], behind: int | None = None
) -> list[Item]:
    """Add items; those whose ids are there already are left as they are. Returns what was added.

    Raises:
        NotFoundError: there is no such conversation (any more).
        ConversationChangedError: others were added behind the item of the number ``behind``, which these go on from.
    """
    # Two that add at the same time do so one after the other, so that the items of each stay together.
    found = select(ConversationRow.id).where(ConversationRow.id == conversation_id).with_for_update()
    if not is_id(conversation_id) or await session.scalar(found) is None:
        raise NotFoundError("conversation", conversation_id)
    if behind is not None:
        others = select(ConversationItemRow.id).where(
            ConversationItemRow.conversation_id == conversation_id,
            ConversationItemRow.number > behind,
            ConversationItemRow.id.not_in([item["id"] for item in items]),
        )
        if await session.scalar(others.limit(1)) is not None:
            raise ConversationChangedError(conversation_id)
    added: list[Item] = []
    for item in items:
        row = {"conversation_id": conversation_id, "id": item["id"], "item": item}
        done = insert(ConversationItemRow).values(row).on_conflict_do_nothing().returning(ConversationItemRow.id)
        if await session.scalar(done) is not None:
            added.append(item)
    return added
