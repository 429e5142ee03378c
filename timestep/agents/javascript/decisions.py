"""Approvals and rejections between the two SDKs, carried by agent, tool and call id, never by fingerprint.

Each SDK binds a decision to a fingerprint of the call that only it can compute. To JavaScript they go as
records of the schema that has no fingerprints yet, whose migration binds them; to Python they are said
again with ``approve`` and ``reject`` after loading.

    approved  True: every call of this tool by this agent; or a list of call ids
    rejected  the same; an exact call's decision stands above the tool's
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agents import Agent, RunState, ToolApprovalItem
from openai.types.responses import ResponseFunctionToolCall

from timestep.agents.javascript.items import refuse_javascript, refuse_python

State = RunState[Any, Agent[Any]]


@dataclass
class Decisions:
    """What was decided for one tool of one agent: always, and call by call (True: approved)."""

    always: bool | None = None
    always_message: str | None = None
    calls: dict[str, bool] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def update(self, other: "Decisions") -> None:
        if other.always is not None:
            self.always, self.always_message = other.always, other.always_message
        self.calls |= other.calls
        self.messages |= other.messages


Decided = dict[tuple[str, str], Decisions]  # by names of agent and tool


def bare_key(name: str) -> str:
    """JavaScript's key of a function without a namespace."""
    return json.dumps(["bare", name], separators=(",", ":"), ensure_ascii=False)


def bare_name(key: str, where: str) -> str:
    """The function's name in one of JavaScript's keys."""
    try:
        parts = json.loads(key)
    except ValueError:
        parts = None
    if not isinstance(parts, list) or len(parts) != 2 or parts[0] != "bare":
        raise refuse_python(where, f"has the key '{key}': only decisions on plain functions are translated")
    return str(parts[1])


def decided_in_python(context: Mapping[str, Any], where: str) -> Decided:
    """The decisions of a Python state's ``context`` (schema 1.21)."""
    for other in ("approvals", "hosted_mcp_approvals"):
        if context.get(other):
            raise refuse_javascript(f"{where}.{other}", "has decisions on tools that are no functions of an agent")
    decided: Decided = {}
    for i, entry in enumerate(context.get("function_tool_approvals") or []):
        key = entry["tool_key"]
        if "." in key or ":" in key:
            raise refuse_javascript(
                f"{where}.function_tool_approvals[{i}]",
                f"is on '{key}': only decisions on plain functions are translated",
            )
        record = entry["decision"]
        made = _decisions(record, record.get("rejection_messages"), record.get("sticky_rejection_message"))
        decided.setdefault((entry["agent"]["name"], key), Decisions()).update(made)
    return decided


def decided_in_javascript(context: Mapping[str, Any], where: str) -> Decided:
    """The decisions of a JavaScript state's ``context``."""
    for other in ("approvals", "hostedMcpApprovals", "legacyFunctionApprovals"):
        if context.get(other):
            raise refuse_python(f"{where}.{other}", "has decisions on tools that are no functions of an agent")
    decided: Decided = {}
    for i, entry in enumerate(context.get("functionApprovals") or []):
        for key, record in entry["approvals"].items():
            name = bare_name(key, f"{where}.functionApprovals[{i}]")
            made = _decisions(record, record.get("messages"), record.get("stickyRejectMessage"))
            decided.setdefault((entry["agentIdentity"], name), Decisions()).update(made)
    return decided


def to_javascript_approvals(decided: Decided) -> list[dict[str, Any]]:
    """The ``functionApprovals`` of JavaScript's context, schema 1.16 and later."""
    by_agent: dict[str, dict[str, Any]] = {}
    for (agent, tool), decisions in decided.items():
        always, calls = decisions.always, decisions.calls
        record: dict[str, Any] = {
            "approved": True if always else [call for call, approved in calls.items() if approved],
            "rejected": True if always is False else [call for call, approved in calls.items() if not approved],
        }
        if decisions.messages:
            record["messages"] = decisions.messages
        if decisions.always_message is not None:
            record["stickyRejectMessage"] = decisions.always_message
        by_agent.setdefault(agent, {})[bare_key(tool)] = record
    return [{"agentIdentity": agent, "approvals": approvals} for agent, approvals in by_agent.items()]


def decide(state: State, decided: Decided, agents: Mapping[str, Agent[Any]]) -> None:
    """Says each decision again: first what holds always, then call by call.

    Decisions on calls that wait no longer have done their work and are left out.
    """
    pending = state.get_interruptions()
    for (owner, tool), decisions in decided.items():
        if decisions.always is not None:
            # On each waiting call: Python binds a decision of before to a call only through its own.
            for item in list(_of(pending, owner, tool)) or [_stand_in(agents, owner, tool)]:
                _say(state, item, decisions.always, decisions.always_message, always=True)
        for item in _of(pending, owner, tool):
            call = item.call_id or ""
            if call in decisions.calls:
                _say(state, item, decisions.calls[call], decisions.messages.get(call), always=False)


def _decisions(record: Mapping[str, Any], messages: Mapping[str, str] | None, always_message: str | None) -> Decisions:
    made = Decisions(messages=dict(messages or {}))
    for approved, value in ((False, record.get("rejected")), (True, record.get("approved"))):
        if value is True:
            made.always, made.always_message = approved, None if approved else always_message
        elif isinstance(value, list):
            made.calls |= dict.fromkeys(value, approved)
    return made


def _of(items: Iterable[ToolApprovalItem], owner: str, tool: str) -> Iterator[ToolApprovalItem]:
    return (item for item in items if item.agent.name == owner and item.tool_name == tool)


def _say(state: State, item: ToolApprovalItem, approved: bool, message: str | None, *, always: bool) -> None:
    if approved:
        state.approve(item, always_approve=always)
    else:
        state.reject(item, always_reject=always, rejection_message=message)


def _stand_in(agents: Mapping[str, Agent[Any]], owner: str, tool: str) -> ToolApprovalItem:
    """A call that never was: a decision that holds always needs one to be said on."""
    if owner not in agents:
        raise refuse_python(
            "context.functionApprovals", f"decides for the agent '{owner}', which is not among the agents"
        )
    call = ResponseFunctionToolCall(type="function_call", call_id=f"always:{owner}:{tool}", name=tool, arguments="{}")
    return ToolApprovalItem(agent=agents[owner], raw_item=call, tool_name=tool, tool_lookup_key=("bare", tool))
