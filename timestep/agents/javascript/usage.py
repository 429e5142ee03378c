"""Token counts between the two SDKs: the same numbers, in lists and records of another shape.

JavaScript's details are records of numbers only, one per request; Python's are one object that may hold
another. An inner count travels under its path ("cache_write_tokens_details.ephemeral"), and comes back.
"""

from collections.abc import Mapping
from typing import Any

_COUNTS = {"input_tokens": "inputTokens", "output_tokens": "outputTokens", "total_tokens": "totalTokens"}
_DETAILS = {"input_tokens_details": "inputTokensDetails", "output_tokens_details": "outputTokensDetails"}
# What Python's objects of details can't be without.
_REQUIRED = {
    "input_tokens_details": ("cached_tokens", "cache_write_tokens"),
    "output_tokens_details": ("reasoning_tokens",),
}


def to_javascript_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"requests": usage.get("requests", 0)}
    made |= {there: usage.get(here, 0) for here, there in _COUNTS.items()}
    made |= {there: [_flat(_merged(usage.get(here)))] for here, there in _DETAILS.items()}
    entries = [
        {there: entry.get(here, 0) for here, there in _COUNTS.items()}
        | {there: _flat(_merged(entry.get(here))) for here, there in _DETAILS.items()}
        for entry in usage.get("request_usage_entries") or []
    ]
    return {**made, "requestUsageEntries": entries} if entries else made


def to_python_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"requests": usage.get("requests", 0)}
    made |= {here: usage.get(there, 0) for here, there in _COUNTS.items()}
    made |= {here: [_nested(_merged(usage.get(there)), here)] for here, there in _DETAILS.items()}
    made["request_usage_entries"] = [
        {here: entry.get(there, 0) for here, there in _COUNTS.items()}
        | {here: _nested(_merged(entry.get(there)), here) for here, there in _DETAILS.items()}
        for entry in usage.get("requestUsageEntries") or []
    ]
    return made


def _merged(details: Any) -> dict[str, Any]:
    """One record of a list of them, counts added up."""
    records = [details] if isinstance(details, Mapping) else details or []
    merged: dict[str, Any] = {}
    for record in records:
        for key, value in record.items():
            merged[key] = merged[key] + value if _is_number(merged.get(key)) and _is_number(value) else value
    return merged


def _flat(details: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in details.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif _is_number(value):
            flat[prefix + key] = value
    return flat


def _nested(flat: Mapping[str, Any], which: str) -> dict[str, Any]:
    nested: dict[str, Any] = dict.fromkeys(_REQUIRED[which], 0)
    for path, value in flat.items():
        *outer, key = path.split(".")
        level = nested
        for name in outer:
            level = level.setdefault(name, {})
        level[key] = value
    return nested


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
