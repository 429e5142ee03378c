"""Guardrails within a step: runs that they start have a place of their own, so that their model calls are units."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from timestep.agents.step import Scope, part, present

G = TypeVar("G")


def scoped(guardrails: Sequence[G] | None, where: Callable[..., str]) -> list[G] | None:
    """Copies of guardrails of any kind; ``where`` gives the position they check, from their function's arguments."""
    if guardrails is None:
        return None
    names: list[str] = []
    copies = []
    for guardrail in guardrails:
        name = guardrail.get_name()  # type: ignore[attr-defined]
        names.append(name)
        again = names.count(name)
        place = part(name if again == 1 else f"{name} {again}")
        copies.append(_scoped(guardrail, name, place, where))
    return copies


def _scoped(guardrail: G, name: str, place: str, where: Callable[..., str]) -> G:
    check = guardrail.guardrail_function  # type: ignore[attr-defined]

    async def checked(*arguments: Any) -> Any:
        with Scope(present().step, f"{where(*arguments)}/guardrail:{place}/").entered():
            result = check(*arguments)
            return await result if inspect.isawaitable(result) else result

    copied: G = replace(guardrail, guardrail_function=checked, name=name)  # type: ignore[type-var]
    return copied
