"""The trace that a run belongs to, so that its spans go on in the same one: id, workflow, group, metadata.

Never a tracing key. Python's hash of one stays behind: it only tells Python that the same key is used again.
"""

import hashlib
from typing import Any

from timestep.agents.javascript.items import refuse_javascript, refuse_python
from timestep.agents.javascript.numbers import exact


def to_javascript_trace(trace: dict[str, Any] | None, agent: str, where: str) -> dict[str, Any]:
    """JavaScript's ``trace`` and ``currentAgentSpan``, the span of the agent that is at work."""
    if not trace or not trace.get("id"):
        return {"trace": None}
    if trace.get("tracing_api_key"):
        raise refuse_javascript(f"{where}.tracing_api_key", "is a secret; write the state without it")
    made = {
        "object": "trace",
        "id": trace["id"],
        "workflow_name": trace.get("workflow_name") or "",
        "group_id": trace.get("group_id"),
        "metadata": exact(trace.get("metadata") or {}, f"{where}.metadata"),
    }
    # JavaScript takes up a trace only with a span; the same state gives the same one.
    digest = hashlib.sha256(f"{trace['id']} {agent}".encode()).hexdigest()
    span = {
        "object": "trace.span",
        "id": f"span_{digest[:24]}",
        "trace_id": trace["id"],
        "parent_id": None,
        "started_at": None,
        "ended_at": None,
        "error": None,
        "span_data": {"type": "agent", "name": agent, "handoffs": [], "tools": [], "output_type": "text"},
    }
    return {"trace": made, "currentAgentSpan": span}


def to_python_trace(trace: dict[str, Any] | None, where: str) -> dict[str, Any] | None:
    """Python's ``trace``. It opens a span of its own for the agent that goes on."""
    if not trace:
        return None
    if trace.get("tracing_api_key"):
        raise refuse_python(f"{where}.tracing_api_key", "is a secret; write the state without it")
    return {key: value for key, value in trace.items() if key != "tracing_api_key"}
