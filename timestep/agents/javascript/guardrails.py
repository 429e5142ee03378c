"""What guardrails have said: on the run's input, and on tools. One on an output belongs to a run that has ended."""

from collections.abc import Mapping
from typing import Any

from agents import Agent

from timestep.agents.javascript.items import refuse_javascript, refuse_python
from timestep.agents.javascript.numbers import exact

_BEHAVIORS = {"allow": "allow", "reject_content": "rejectContent", "raise_exception": "throwException"}
_TOOLS = {
    "tool_input_guardrail_results": "toolInputGuardrailResults",
    "tool_output_guardrail_results": "toolOutputGuardrailResults",
}


def to_javascript_results(state: Mapping[str, Any], agent: Agent[Any], where: str) -> dict[str, Any]:
    """JavaScript goes on only where the run's input was let through, and Python's state doesn't say so by itself.

    Proof is a result of each of the first agent's guardrails; where there is none, there is nothing to prove.
    """
    if state["output_guardrail_results"]:
        raise refuse_javascript(f"{where}output_guardrail_results", "are of a run that has ended")
    path = f"{where}input_guardrail_results"
    results = state["input_guardrail_results"]
    passed = [result["guardrail"]["name"] for result in results if not result["output"]["tripwireTriggered"]]
    for guardrail in agent.input_guardrails:
        if guardrail.get_name() not in passed:
            why = f"don't show that '{guardrail.get_name()}' of '{agent.name}' has run; start the run anew"
            raise refuse_javascript(path, why)
        passed.remove(guardrail.get_name())
    return {
        "initialInputGuardrailsCompleted": True,
        "inputGuardrailResults": exact(results, path),
        "outputGuardrailResults": [],
        **{
            there: [_renamed(result, _BEHAVIORS) for result in exact(state[here], f"{where}{here}")]
            for here, there in _TOOLS.items()
        },
    }


def to_python_results(js: Mapping[str, Any], where: str) -> dict[str, Any]:
    if js["outputGuardrailResults"]:
        raise refuse_python(f"{where}outputGuardrailResults", "are of a run that has ended")
    if not js.get("initialInputGuardrailsCompleted"):
        why = "doesn't say that the input was let through; start the run anew"
        raise refuse_python(f"{where}initialInputGuardrailsCompleted", why)
    behaviors = {there: here for here, there in _BEHAVIORS.items()}
    return {
        "input_guardrail_results": js["inputGuardrailResults"],
        "output_guardrail_results": [],
        **{here: [_renamed(result, behaviors) for result in js.get(there) or []] for here, there in _TOOLS.items()},
    }


def _renamed(result: Mapping[str, Any], behaviors: Mapping[str, str]) -> dict[str, Any]:
    output = result["output"]
    behavior = {**output["behavior"], "type": behaviors[output["behavior"]["type"]]}
    return {**result, "output": {"outputInfo": None, **output, "behavior": behavior}}
