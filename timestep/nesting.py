"""Walking through JSON that may be nested without end: by no recursion, whose depth a client could choose."""

from collections.abc import Iterator
from typing import Any

DEEPEST = 100  # levels that are taken


def nested(value: Any) -> Iterator[tuple[Any, int]]:
    """The value and all within it, an object's keys included, each with its depth; goes no deeper than it is asked."""
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        yield one, depth
        if isinstance(one, dict):
            left += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list):
            left += [(part, depth + 1) for part in one]
