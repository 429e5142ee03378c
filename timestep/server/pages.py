"""Lists a page at a time, in OpenAI's way: ``limit``, ``after``, ``order``, and whether there is more."""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=100, description="Objects on a page.")]
After = Annotated[str | None, Query(description="Id of the last object of the page before.")]
Before = Annotated[str | None, Query(description="Id of the first object of the page behind.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By time of creation.")]

# What OpenAI's clients name to get more of each object than by default; here all of it comes always.
Include = Annotated[list[str] | None, Query(alias="include[]", include_in_schema=False)]


class Page(BaseModel, Generic[T]):
    """One page of a list. ``first_id`` and ``last_id`` are empty where it is."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


def page(found: Sequence[Any], limit: int) -> dict[str, Any]:
    """A page of at most ``limit`` of ``found``, which has one more than that where there is more."""
    data = [one if isinstance(one, dict) else one.model_dump(mode="json") for one in found[:limit]]
    ids = [one["id"] for one in data]
    return {
        "object": "list",
        "data": data,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": len(found) > limit,
    }
