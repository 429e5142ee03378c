"""A JavaScript run's state as the Python SDK loads it.

Written in Python's schema 1.14, the last one without fingerprints of calls: Python's migration from it
computes its own.
"""

import json
from collections.abc import Mapping
from typing import Any

from agents import Agent, RunState, UserError

from timestep.agents.javascript.decisions import Decided, Decisions, bare_key, bare_name, decide, decided_in_javascript
from timestep.agents.javascript.graph import agents_by_name
from timestep.agents.javascript.guardrails import to_python_results
from timestep.agents.javascript.items import HOSTED_CALLS, refuse_python, to_python_item
from timestep.agents.javascript.persisted import to_python_count
from timestep.agents.javascript.trace import to_python_trace
from timestep.agents.javascript.usage import to_python_usage

SCHEMA = "1.14"
# Those that have decisions by agent. 1.17 is what the writer writes.
READ = ("1.17", "1.18", "1.19", "1.20", "1.21", "1.22")

_UNSETTLED = "is a write to a session that is not settled; run it on with that session first"
_REFUSED = {
    "pendingSessionHistoryTransaction": _UNSETTLED,
    "pendingSessionWrite": _UNSETTLED,
    "pendingLegacyCompactionSessionItems": _UNSETTLED,
    "currentTurnDeferredSessionItemIndexes": _UNSETTLED,
    "sandbox": "is the state of a sandbox, which only JavaScript's SDK can take up again",
}
_REFUSED_ACTIONS = {
    "functionToolsNotFound": "calls of tools that the agent doesn't have",
    "computerActions": "calls of computer tools, which are not translated",
    "shellActions": "calls of shell tools, which are not translated",
    "applyPatchActions": "calls of apply_patch tools, which are not translated",
    "mcpApprovalRequests": "calls of hosted MCP tools, which are not translated",
}
_PLAIN_ITEMS = {"message_output_item", "reasoning_item", "compaction_item", "handoff_call_item", "tool_call_item"}


async def from_javascript(js: dict[str, Any], agent: Agent[Any]) -> RunState[Any, Agent[Any]]:
    """The state of a JavaScript run of ``agent`` that waits for approvals, decisions said again.

    ``js`` is what JSON.parse(state.toString()) gives. Raises StateTransferError for the first part that
    Python has no place for, and where ``agent`` doesn't fit the state.
    """
    decided: Decided = {}
    agents = agents_by_name(agent, refuse_python)
    try:
        written = _Reader(js, agents, decided).read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refuse_python("$", f"is damaged, not what JavaScript writes ({type(error).__name__}: {error})") from error
    try:
        state: RunState[Any, Agent[Any]] = await RunState.from_json(agent, written, strict_context=True)
    except UserError as error:
        raise refuse_python("currentAgent", f"doesn't fit the agent '{agent.name}': {error}".rstrip(".")) from error
    _check_complete(written, state.to_json(strict_context=True))
    decide(state, decided, agents)
    return state


class _Reader:
    """Reads one run's state; the run of an agent as a tool has a reader of its own."""

    def __init__(self, js: dict[str, Any], agents: Mapping[str, Agent[Any]], decided: Decided, where: str = "") -> None:
        self.js, self.agents, self.decided, self.where = js, agents, decided, where
        self.nested_runs: set[str] = set()
        self.mcp_bindings: dict[str, list[Any]] = {}

    def read(self) -> dict[str, Any]:
        js = self.js
        if js.get("$schemaVersion") not in READ:
            raise refuse_python(
                self.at("$schemaVersion"), f"is '{js.get('$schemaVersion')}', not one of {', '.join(READ)}"
            )
        for key, why in _REFUSED.items():
            if js.get(key):
                raise refuse_python(self.at(key), why)
        responses = [self.response(response, i) for i, response in enumerate(js["modelResponses"])]
        pending = js.get("pendingInput") or []
        return {
            "$schemaVersion": SCHEMA,
            "current_turn": js["currentTurn"],
            "current_agent": self.named(js["currentAgent"], "currentAgent"),
            "original_input": self.original_input(),
            "pending_input": [to_python_item(item, self.at(f"pendingInput[{i}]")) for i, item in enumerate(pending)],
            "model_responses": responses,
            "last_model_response": responses[-1] if responses else None,
            "context": self.context(),
            "tool_use_tracker": js["toolUseTracker"],
            "max_turns": js["maxTurns"],
            "no_active_agent_run": True,
            **to_python_results(js, self.where),
            "current_step": self.step(),
            "generated_items": self.items(js["generatedItems"], "generatedItems"),
            "last_processed_response": self.processed(),
            "current_turn_persisted_item_count": self.persisted(),
            "conversation_id": js.get("conversationId"),
            "previous_response_id": js.get("previousResponseId"),
            "reasoning_item_id_policy": js.get("reasoningItemIdPolicy"),
            "trace": to_python_trace(js.get("trace"), self.at("trace")),
        }

    def at(self, path: str) -> str:
        return f"{self.where}{path}"

    # What was said and done

    def original_input(self) -> str | list[dict[str, Any]]:
        given = self.js["originalInput"]
        if isinstance(given, str):
            return given
        return [to_python_item(item, self.at(f"originalInput[{i}]")) for i, item in enumerate(given)]

    def response(self, response: dict[str, Any], number: int) -> dict[str, Any]:
        where = self.at(f"modelResponses[{number}].output")
        return {
            "usage": to_python_usage(response["usage"]),
            "output": [to_python_item(item, f"{where}[{i}]") for i, item in enumerate(response["output"])],
            "response_id": response.get("responseId"),
            "request_id": response.get("requestId"),
        }

    def items(self, items: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
        return [self.item(item, self.at(f"{path}[{i}]")) for i, item in enumerate(items)]

    def item(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        kind = item["type"]
        if kind == "tool_approval_item":
            return self.approval(item, where)
        raw = to_python_item(item["rawItem"], f"{where}.rawItem")
        if kind == "handoff_output_item":
            source, target = self.named(item["sourceAgent"], where), self.named(item["targetAgent"], where)
            return {"type": kind, "raw_item": raw, "agent": source, "source_agent": source, "target_agent": target}
        made = {"type": kind, "raw_item": raw, "agent": self.named(item["agent"], where)}
        if kind == "tool_call_item":
            if raw["type"] == "mcp_list_tools":
                return made | {"type": "mcp_list_tools_item"}
            return made | ({} if raw["type"] in HOSTED_CALLS else {"tool_name": raw["name"]})
        if kind in _PLAIN_ITEMS:
            return made
        if kind == "input_item":
            return made | {"input_id": item["inputId"]}
        if kind == "tool_call_output_item":
            custom = {"custom_data": item["customData"]} if item.get("customData") else {}
            return made | {"output": item["output"]} | custom
        raise refuse_python(where, f"is of type '{kind}', which is not translated")

    def approval(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        raw = item["rawItem"]
        if raw.get("type") != "function_call":
            raise refuse_python(where, "asks for a tool that is not a plain function")
        if item.get("functionToolStateKey"):
            bare_name(item["functionToolStateKey"], where)
        name = item.get("toolName") or raw["name"]
        return {
            "type": "tool_approval_item",
            "raw_item": to_python_item(raw, f"{where}.rawItem"),
            "agent": self.named(item["agent"], where),
            "tool_name": name,
            "tool_lookup_key": {"kind": "bare", "name": name},
        }

    def named(self, agent: Mapping[str, Any], where: str) -> dict[str, str]:
        if agent.get("identity", agent["name"]) != agent["name"]:
            raise refuse_python(where, f"is one of several agents of the name '{agent['name']}'")
        if agent["name"] not in self.agents:
            raise refuse_python(where, f"names the agent '{agent['name']}'. Agents: {', '.join(self.agents)}")
        return {"name": agent["name"]}

    # What is to be done

    def step(self) -> dict[str, Any]:
        step = self.js.get("currentStep") or {}
        if step.get("type") != "next_step_interruption":
            raise refuse_python(self.at("currentStep"), "waits for no approval: only a run that waits can be carried")
        data = step["data"]
        if data.get("responseAccepted"):
            raise refuse_python(self.at("currentStep"), "stands between a model's response and its processing")
        where = self.at("currentStep.data.interruptions")
        items = [self.approval(item, f"{where}[{i}]") for i, item in enumerate(data["interruptions"])]
        return {"type": "next_step_interruption", "data": {"interruptions": items}}

    def processed(self) -> dict[str, Any]:
        response, path = self.js.get("lastProcessedResponse"), "lastProcessedResponse"
        if response is None:
            raise refuse_python(self.at(path), "is missing: what the response asked for is not known")
        for key, what in _REFUSED_ACTIONS.items():
            if response.get(key):
                raise refuse_python(self.at(f"{path}.{key}"), f"has {what}")
        functions = [self.function(entry, i) for i, entry in enumerate(response["functions"])]
        for key in self.js.get("pendingAgentToolRuns") or {}:
            if key not in self.nested_runs:
                raise refuse_python(self.at(f"pendingAgentToolRuns.{key}"), "belongs to no call of this response")
        return {
            "new_items": self.items(response["newItems"], f"{path}.newItems"),
            "tools_used": response["toolsUsed"],
            "handoffs": [self.handoff(entry, i) for i, entry in enumerate(response["handoffs"])],
            "functions": functions,
            "interruptions": self.step()["data"]["interruptions"],
            "computer_actions": [],
            "custom_tool_actions": [],
            "local_shell_actions": [],
            "shell_actions": [],
            "apply_patch_actions": [],
            "mcp_approval_requests": [],
            "mcp_tool_bindings": self.mcp_bindings,
        }

    def persisted(self) -> int:
        js = self.js
        response = js["lastProcessedResponse"]["newItems"]
        return to_python_count(js.get("currentTurnPersistedItemCount") or 0, js["generatedItems"], response)

    def function(self, entry: dict[str, Any], number: int) -> dict[str, Any]:
        where = self.at(f"lastProcessedResponse.functions[{number}]")
        call, tool = to_python_item(entry["toolCall"], f"{where}.toolCall"), entry["tool"]
        made = {
            "tool_call": call,
            "tool": {
                "name": tool["name"],
                "lookupKey": {"kind": "bare", "name": call["name"]},
                "description": tool.get("description", ""),
                "paramsJsonSchema": tool.get("parameters", {}),
            },
        }
        self.mcp_binding(entry, where)
        nested = self.nested_run(call, where)
        return made | ({"agent_run_state": nested} if nested else {})

    def mcp_binding(self, entry: dict[str, Any], where: str) -> None:
        """Notes whose tool of which MCP server was called; it must have answered."""
        binding, call = entry.get("mcpToolBinding"), entry["toolCall"]
        if binding is None:
            return
        outputs = (item["rawItem"] for item in self.js["generatedItems"] if item["type"] == "tool_call_output_item")
        if binding == "unknown" or not any(output.get("callId") == call["callId"] for output in outputs):
            raise refuse_python(where, f"waits for '{call['name']}', a tool of an MCP server, which is not translated")
        self.mcp_bindings[call["callId"]] = [binding["serverName"], binding["toolName"], binding["serverIndex"]]

    def nested_run(self, call: dict[str, Any], where: str) -> dict[str, Any] | None:
        """The waiting run of an agent that is a tool."""
        runs = self.js.get("pendingAgentToolRuns") or {}
        for key in (bare_key(call["name"]), call["name"]):
            text = runs.get(f"{key}:{call['call_id']}")
            if text is not None:
                self.nested_runs.add(f"{key}:{call['call_id']}")
                inner = _Reader(json.loads(text), self.agents, self.decided, f"{where}.pendingAgentToolRun.")
                return inner.read()
        return None

    def handoff(self, entry: dict[str, Any], number: int) -> dict[str, Any]:
        where = self.at(f"lastProcessedResponse.handoffs[{number}].toolCall")
        return {
            "tool_call": to_python_item(entry["toolCall"], where),
            "handoff": {"tool_name": entry["handoff"]["toolName"]},
        }

    # What is around it

    def context(self) -> dict[str, Any]:
        context = self.js["context"]
        for key, decisions in decided_in_javascript(context, self.at("context")).items():
            self.decided.setdefault(key, Decisions()).update(decisions)
        made = {
            "usage": to_python_usage(context["usage"]),
            "approvals": {},
            "context": context["context"],
        }
        return made | ({"tool_input": context["toolInput"]} if context.get("toolInput") is not None else {})


def _check_complete(written: dict[str, Any], loaded: dict[str, Any], where: str = "") -> None:
    """Python's loader skips what it can't resolve; a part that is missing after it is named here."""
    before, after = written["last_processed_response"], loaded["last_processed_response"]
    found = {entry["tool_call"]["call_id"]: entry for entry in [*after["functions"], *after["handoffs"]]}
    for kind in ("functions", "handoffs"):
        for i, entry in enumerate(before[kind]):
            path, call = f"{where}lastProcessedResponse.{kind}[{i}]", entry["tool_call"]
            there = found.get(call["call_id"])
            if there is None:
                raise refuse_python(
                    path, f"calls '{call['name']}', which '{written['current_agent']['name']}' doesn't have"
                )
            if "agent_run_state" in entry:
                if "agent_run_state" not in there:
                    raise refuse_python(path, f"calls '{call['name']}', which is not an agent as a tool any more")
                _check_complete(entry["agent_run_state"], there["agent_run_state"], f"{path}.pendingAgentToolRun.")
    for here, there_path in (("generated_items", "generatedItems"), ("model_responses", "modelResponses")):
        if len(written[here]) != len(loaded[here]):
            raise refuse_python(
                f"{where}{there_path}", f"has {len(written[here])} items, of which Python took {len(loaded[here])}"
            )
    waiting = [len(state["current_step"]["data"]["interruptions"]) for state in (written, loaded)]
    if waiting[0] != waiting[1]:
        raise refuse_python(
            f"{where}currentStep", f"has {waiting[0]} calls that wait, of which Python took {waiting[1]}"
        )
