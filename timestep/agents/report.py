"""What a person reads about a step in the Prefect UI: markdown and tables, from plain data."""

import json
from typing import Any

from timestep.agents.types import StepOutput

LONGEST_TEXT = 4_000


def summary(output: StepOutput, trace: dict[str, Any]) -> str:
    """Markdown of a step that thought: the answer, the conversation, the usage."""
    lines = [f"# {output.agent} · {output.mode.value}", "", _quote(_text(output.output)), ""]
    if output.forced:
        lines += ["A tool call was demanded by `tool_choice`; it was not the model's own choice.", ""]
    lines += ["## Conversation", ""]
    for message in trace["messages"]:
        lines += [f"**{message['role']}**", "", _quote(_message(message)), ""]
    usage = output.usage
    lines += [
        "## Usage",
        "",
        f"{output.turns} model calls, {len(output.tool_calls)} tool calls, {usage.input_tokens} tokens in, "
        f"{usage.output_tokens} tokens out, {_dollars(usage.cost) or 'cost not known'}, {output.seconds:.1f} s, "
        f"model `{output.model}`.",
    ]
    return "\n".join(lines)


def turns(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of turns, one per model or tool call."""
    return [
        {
            "position": call["position"],
            "kind": call["kind"],
            "name": call["name"],
            "seconds": round(call["seconds"], 3),
            "tokens in": (call["usage"] or {}).get("input_tokens", ""),
            "tokens out": (call["usage"] or {}).get("output_tokens", ""),
            "cost": _dollars(call.get("cost")) if call["usage"] else "",
        }
        for call in trace["calls"]
    ]


def training_summary(output: StepOutput) -> str:
    """Markdown of a step that learned: the version, what was measured, whether it serves now."""
    outcome = output.training
    assert outcome is not None
    verdict = "It serves now." if outcome.promoted else "The version served before stays."
    return "\n".join(
        [
            f"# {output.agent} · training",
            "",
            f"New version `{outcome.model_version}`. {verdict}",
            "",
            "| held-out conversations | before | after |",
            "|---|---|---|",
            f"| perplexity | {_figure(outcome.perplexity_before)} | {_figure(outcome.perplexity_after)} |",
            f"| exact tool calls | {_share(outcome.tool_call_accuracy_before)} "
            f"| {_share(outcome.tool_call_accuracy_after)} |",
            "",
            f"{outcome.conversations} conversations, {outcome.held_out} held out, {outcome.cut} cut, "
            f"{outcome.tokens} tokens in {outcome.seconds:.0f} s. "
            f"Loss by epoch: {', '.join(f'{loss:.3f}' for loss in outcome.losses)}.",
        ]
    )


def _message(message: dict[str, Any]) -> str:
    parts = [_text(message["content"])] if message.get("content") else []
    calls = [call["function"] for call in message.get("tool_calls") or []]
    parts += [f"→ `{call['name']}({call['arguments']})`" for call in calls]
    return "\n\n".join(parts)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … ({len(text)} characters; see the trace)"


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _dollars(value: float | None) -> str:
    """Four figures of a cent's fraction; what isn't known is left out."""
    return "" if value is None else f"${value:.6f}".rstrip("0").rstrip(".")


def _share(value: float | None) -> str:
    return "no tool calls" if value is None else f"{value:.0%}"
