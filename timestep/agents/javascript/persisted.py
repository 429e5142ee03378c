"""How much of a run its session already holds, which each SDK counts in its own way.

JavaScript counts all items of the run up to there; Python those of the current response, without the
requests for approval, which no session holds.
"""

from typing import Any

Items = list[dict[str, Any]]


def to_javascript_count(count: int, generated: Items, response: Items) -> int:
    """Both lists are Python's. 0 where no session was written to."""
    if count == 0:
        return 0
    start = _start(generated, response, "raw_item")
    held = [i for i, item in enumerate(generated) if i >= start and item["type"] != "tool_approval_item"]
    return len(generated) if count >= len(held) else held[count]


def to_python_count(count: int, generated: Items, response: Items) -> int:
    """Both lists are JavaScript's."""
    held = generated[_start(generated, response, "rawItem") : count]
    return sum(item["type"] != "tool_approval_item" for item in held)


def _start(generated: Items, response: Items, raw: str) -> int:
    """Where the items of the current response begin."""
    first = response[0][raw] if response else None
    return max((i for i, item in enumerate(generated) if item[raw] == first), default=len(generated))
