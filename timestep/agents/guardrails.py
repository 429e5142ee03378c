"""Guardrails within a step: runs that they start have a place of their own, so that their model calls are units."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from timestep.agents.step import Scope, part, present

G = TypeVar("G")

_SCOPED = "timestep_scoped"


def scoped(guardrails: Sequence[G] | None, where: Callable[..., str], names: list[str]) -> list[G]:
    """Copies of guardrails of any kind; ``where`` gives the position they check, from their function's arguments.

    ``names`` are those used at this position so far; the guardrails' own are added.
    """
    copies = []
    for guardrail in guardrails or ():
        name = guardrail.get_name()  # type: ignore[attr-defined]
        names.append(name)
        again = names.count(name)
        place = part(name if again == 1 else f"{name} {again}")
        copies.append(_scoped(guardrail, name, place, where))
    return copies


def _scoped(guardrail: G, name: str, place: str, where: Callable[..., str]) -> G:
    check = guardrail.guardrail_function  # type: ignore[attr-defined]
    if getattr(check, _SCOPED, False):
        return guardrail  # inherited from the run above; where it checks is found when it does

    async def checked(*arguments: Any) -> Any:
        with Scope(present().step, f"{where(*arguments)}/guardrail:{place}/").entered():
            result = check(*arguments)
            return await result if inspect.isawaitable(result) else result

    setattr(checked, _SCOPED, True)
    copied: G = replace(guardrail, guardrail_function=checked, name=name)  # type: ignore[type-var]
    return copied
