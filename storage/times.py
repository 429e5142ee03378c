"""Times of objects, as drivers tell them: in four forms."""

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any


def modified(extra: dict[str, Any]) -> datetime | None:
    """The time of an object's last write, by what its driver says of it; None where it doesn't tell."""
    return parse_time(extra.get("last_modified", extra.get("modify_time")))


def parse_time(value: object) -> datetime | None:
    """A time in UTC; None where ``value`` is none."""
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError, TypeError):
            return parse(str(value)).astimezone(UTC)
    return None
