"""A response by its id: a row where it was answered in the foreground, else a view of the step that answers it."""

from typing import Any

from fastapi import Request

from timestep.agents.responses.items import Item, is_id
from timestep.errors import NotFoundError
from timestep.server.pages import Page, page
from timestep.server.records import Housekeeper
from timestep.server.responses import stored
from timestep.server.responses.stored import Stored


async def find(request: Request, id: str) -> Stored:
    """The response as it stands.

    Raises:
        NotFoundError: there is none of that id, or it was not to be stored.
        ServiceUnavailableError: the database, or Prefect's server, is away.
    """
    from timestep.server.responses import background

    if not is_id(id):
        raise NotFoundError(background.KIND, id)
    housekeeper: Housekeeper = request.app.state.housekeeper
    if (found := await stored.load(await housekeeper.database(), id)) is not None:
        return found
    found = await background.load(await housekeeper.records(), id)
    if not found.response["store"]:
        raise NotFoundError(background.KIND, id)
    return found


async def forget(request: Request, id: str) -> None:
    """Delete the response. Raises as :func:`find`, and ConflictError where its step does not end in time."""
    from timestep.server.responses import background

    housekeeper: Housekeeper = request.app.state.housekeeper
    shelves = await housekeeper.shelves()
    if not is_id(id) or not await stored.delete(shelves.database, id):
        await find(request, id)
        await background.delete(await housekeeper.records(), shelves.store, id)


def paged(items: list[Item], limit: int, after: str | None, order: str) -> Page[Any]:
    """A page of items, which are given in their order. NotFoundError: there is none with the id ``after``."""
    ordered = items if order == "asc" else items[::-1]
    if after is not None:
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise NotFoundError("item", after)
        ordered = ordered[ids.index(after) + 1 :]
    return Page[Any](**page(ordered[: limit + 1], limit))
