"""Numbers that both languages read the same: JavaScript has no integers beyond 2**53, JSON no infinities."""

import math
from typing import Any

from timestep.agents.javascript.items import refuse_javascript

_LARGEST = 2**53 - 1


def exact(value: Any, where: str) -> Any:
    """``value``, refused where JavaScript would read another number than Python wrote."""
    if isinstance(value, dict):
        return {key: exact(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        raise refuse_javascript(where, f"is {value}, which JavaScript's numbers can't hold exactly; make it a string")
    if isinstance(value, float) and not math.isfinite(value):
        raise refuse_javascript(where, f"is {value}, which JSON doesn't have")
    return value
