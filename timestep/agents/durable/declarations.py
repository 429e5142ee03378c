"""What an author declares of a tool: that it must not run twice, or that it may be tried again.

    @once
    @function_tool
    def pay(amount: int) -> str: ...

A declaration is part of the tool's class, since the SDK copies tools field by field.
"""

import copy
from typing import Any, TypeVar

from agents import CustomTool, FunctionTool, LocalShellTool, ShellTool
from agents.tool import Tool

T = TypeVar("T", FunctionTool, CustomTool, LocalShellTool, ShellTool)

_ONCE, _RETRIES = "runs_once", "retries"


def once(tool: T) -> T:
    """The tool, declared to never run twice by itself.

    A call of it that a crash cut in the middle waits for a person, who says: run it again, here is the result, or
    fail. Tools with ``needs_approval`` are treated so without being declared.
    """
    return _declared(tool, {_ONCE: True})


def idempotent(tool: FunctionTool, *, retries: int = 3) -> FunctionTool:
    """The tool, declared to be safe to repeat: a call that fails is tried again up to ``retries`` times.

    What counts as the same call, the tool can tell by its idempotency key (``StepContext.idempotency_key``).
    """
    return _declared(tool, {_RETRIES: retries})


def runs_once(tool: Tool) -> bool:
    """Whether the tool was declared ``once``."""
    return bool(getattr(tool, _ONCE, False))


def retries(tool: Tool) -> int:
    """How often a failed call may be tried again: 0 unless the tool was declared ``idempotent``."""
    return int(getattr(tool, _RETRIES, 0))


def _declared(tool: T, facts: dict[str, Any]) -> T:
    declared = copy.copy(tool)
    declared.__class__ = type(type(tool).__name__, (type(tool),), facts)
    return declared
