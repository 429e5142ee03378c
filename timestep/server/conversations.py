"""/v1/conversations: what was said, kept in our database, for responses to go on from and to add to."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItem
from pydantic import BaseModel, ConfigDict, Field

from timestep.agents.responses.items import Item, check_items, complete
from timestep.agents.responses.request import Metadata
from timestep.errors import ConflictError, NotFoundError
from timestep.server.documented import errors
from timestep.server.pages import After, Include, Limit, Order, Page, page
from timestep.server.records import Housekeeper
from timestep.server.refusals import known_query

router = APIRouter(prefix="/v1/conversations", tags=["conversations"], dependencies=[Depends(known_query)])

MOST_ITEMS = 20  # that are added at once, as in OpenAI's API

Items = Annotated[list[dict[str, Any]], Field(max_length=MOST_ITEMS, description="Input items of the Responses API.")]


class CreateConversation(BaseModel):
    """A conversation to be begun."""

    model_config = ConfigDict(extra="forbid")

    items: Items | None = None
    metadata: Metadata | None = None


class UpdateConversation(BaseModel):
    """What can be changed of a conversation."""

    model_config = ConfigDict(extra="forbid")

    metadata: Metadata | None


class CreateItems(BaseModel):
    """Items to be added."""

    model_config = ConfigDict(extra="forbid")

    items: Items


@router.post("", summary="Create a conversation")
async def create(request: Request, body: CreateConversation | None = None) -> Conversation:
    """Begin a conversation, with the items that were said already."""
    from timestep.server.conversation_rows import create as create_row

    body = body or CreateConversation()
    items = _completed(body.items or [])
    return Conversation(**await create_row(await _database(request), body.metadata or {}, items))


@router.get("/{conversation_id}", summary="Get a conversation", responses=errors(404))
async def get(conversation_id: str, request: Request) -> Conversation:
    """The conversation, without its items."""
    from timestep.server.conversation_rows import read

    return Conversation(**await read(await _database(request), conversation_id))


@router.post("/{conversation_id}", summary="Update a conversation", responses=errors(404))
async def update(conversation_id: str, body: UpdateConversation, request: Request) -> Conversation:
    """Set its metadata."""
    from timestep.server.conversation_rows import update as update_row

    return Conversation(**await update_row(await _database(request), conversation_id, body.metadata or {}))


@router.delete("/{conversation_id}", summary="Delete a conversation", responses=errors(404))
async def delete(conversation_id: str, request: Request) -> ConversationDeletedResource:
    """Forget the conversation and its items; responses that were part of it stay."""
    from timestep.server.conversation_rows import delete as delete_row

    await delete_row(await _database(request), conversation_id)
    return ConversationDeletedResource(id=conversation_id, object="conversation.deleted", deleted=True)


@router.post("/{conversation_id}/items", summary="Add items", responses=errors(404, 409))
async def create_items(
    conversation_id: str, body: CreateItems, request: Request, include: Include = None
) -> Page[dict[str, Any]]:
    """Add items, all or none."""
    from timestep.agents.responses import conversations

    items = _completed(body.items)
    async with (await _database(request)).session() as session:
        added = await conversations.add(session, conversation_id, items)
        if len(added) < len(items):
            ids = {item["id"] for item in added}
            twice = next((item["id"] for item in items if item["id"] not in ids), items[-1]["id"])
            raise ConflictError(f"Conversation '{conversation_id}' has an item '{twice}' already.")
    return Page[dict[str, Any]](**page(items, len(items)))


@router.get("/{conversation_id}/items", summary="List items", responses=errors(404))
async def list_items(
    conversation_id: str,
    request: Request,
    limit: Limit = 20,
    after: After = None,
    order: Order = "desc",
    include: Include = None,
) -> Page[dict[str, Any]]:
    """The conversation's items, the newest first unless told otherwise."""
    from timestep.server.conversation_rows import items

    found = await items(await _database(request), conversation_id, limit + 1, after=after, descending=order == "desc")
    return Page[dict[str, Any]](**page(found, limit))


@router.get("/{conversation_id}/items/{item_id}", summary="Get an item", responses=errors(404))
async def get_item(conversation_id: str, item_id: str, request: Request, include: Include = None) -> ConversationItem:
    """One item of the conversation."""
    from timestep.server.conversation_rows import item

    return JSONResponse(await item(await _database(request), conversation_id, item_id))  # type: ignore[return-value]


@router.delete("/{conversation_id}/items/{item_id}", summary="Delete an item", responses=errors(404))
async def delete_item(conversation_id: str, item_id: str, request: Request) -> Conversation:
    """Take an item out of the conversation."""
    from timestep.server.conversation_rows import delete_item as delete_row

    return Conversation(**await delete_row(await _database(request), conversation_id, item_id))


def _completed(items: list[Item]) -> list[Item]:
    check_items(items, "items")
    for item in items:
        if item.get("type") == "item_reference":
            raise NotFoundError("item", item["id"])
    return complete(items)


async def _database(request: Request) -> Any:
    housekeeper: Housekeeper = request.app.state.housekeeper
    return await housekeeper.database()
