"""Guardrails within a step: runs that they start have a place of their own, so that their model calls are units."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from agents import (
    InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)

from timestep.agents.durable.step import Scope, part, present
from timestep.errors import TimestepError

G = TypeVar("G")
# What the SDK raises where a guardrail stops a run. Its sentences name classes of its own.
REFUSALS = (
    InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)

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


def refusal(error: Exception) -> TimestepError:
    """One of ``REFUSALS`` in words for people: which guardrail, of what, and what it noted where that is text."""
    if isinstance(error, InputGuardrailTripwireTriggered | OutputGuardrailTripwireTriggered):
        name, output = error.guardrail_result.guardrail.get_name(), error.guardrail_result.output
        what = "input" if isinstance(error, InputGuardrailTripwireTriggered) else "output"
    else:
        assert isinstance(error, ToolInputGuardrailTripwireTriggered | ToolOutputGuardrailTripwireTriggered)
        name, output = error.guardrail.get_name(), error.output  # type: ignore[assignment]
        is_input = isinstance(error, ToolInputGuardrailTripwireTriggered)
        what = "arguments of a tool" if is_input else "output of a tool"
    note = f": {output.output_info}" if isinstance(output.output_info, str) and output.output_info else "."
    return TimestepError(f"Guardrail '{name}' refused the {what}{note}")
