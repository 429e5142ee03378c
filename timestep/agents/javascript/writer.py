"""A Python run's state as the JavaScript SDK loads it.

Written in JavaScript's schema 1.17, the last one without fingerprints of calls: JavaScript's migration from
it computes its own.
"""

import json
from collections.abc import Mapping
from typing import Any

from agents import Agent, RunState, UserError

from timestep.agents.javascript.decisions import (
    Decided,
    Decisions,
    bare_key,
    decided_in_python,
    to_javascript_approvals,
)
from timestep.agents.javascript.graph import agent_behind, agents_by_name, handoff_target
from timestep.agents.javascript.guardrails import to_javascript_results
from timestep.agents.javascript.items import call_names, refuse_javascript, to_javascript_item
from timestep.agents.javascript.numbers import exact
from timestep.agents.javascript.persisted import to_javascript_count
from timestep.agents.javascript.trace import to_javascript_trace
from timestep.agents.javascript.usage import to_javascript_usage

SCHEMA, READ = "1.17", "1.21"

# What must be empty: JavaScript has no place for it, and dropping it would change the run.
_REFUSED = {
    "pending_input": "is input that waits for the next turn; run it on in Python until the model has it",
    "nested_history_owned_session_item_refs": "is bookkeeping of a nested handoff history",
    "pending_session_write": "is a write to a session that is not settled; run it on with that session first",
    "terminal_unrecoverable": "says that the run has ended",
    "sandbox": "is the state of a sandbox, which only Python's SDK can take up again",
}
_REFUSED_ACTIONS = {
    "computer_actions": "computer",
    "custom_tool_actions": "custom",
    "local_shell_actions": "local shell",
    "shell_actions": "shell",
    "apply_patch_actions": "apply_patch",
    "mcp_approval_requests": "hosted MCP",
}
# Run items whose fields are the same in both languages, but for the raw item's.
_PLAIN_ITEMS = {"message_output_item", "reasoning_item", "compaction_item", "handoff_call_item", "tool_call_item"}


def to_javascript(state: RunState[Any, Agent[Any]] | dict[str, Any], agent: Agent[Any]) -> dict[str, Any]:
    """The JavaScript state of a run of ``agent`` that waits for approvals.

    ``state`` is a RunState, or its JSON in schema 1.21. Decisions already made are in the result.
    Raises StateTransferError for the first part that JavaScript has no place for.
    """
    if isinstance(state, RunState):
        try:
            state = state.to_json(strict_context=True)
        except UserError as error:
            raise refuse_javascript("context", f"can't be written: {error}".rstrip(".")) from error
    if state.get("$schemaVersion") != READ:
        why = f"is '{state.get('$schemaVersion')}', not '{READ}'; load it with RunState.from_json first"
        raise refuse_javascript("$schemaVersion", why)
    decided: Decided = {}
    try:
        written = _Writer(state, agent, decided).write()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"is damaged, not what RunState.to_json writes ({type(error).__name__}: {error})"
        raise refuse_javascript("$", why) from error
    written["context"]["functionApprovals"] = to_javascript_approvals(decided)
    return written


class _Writer:
    """Writes one run's state; the run of an agent as a tool has a writer of its own."""

    def __init__(self, state: dict[str, Any], agent: Agent[Any], decided: Decided, where: str = "") -> None:
        self.state, self.agent, self.decided, self.where = state, agent, decided, where
        self.agents = agents_by_name(agent, refuse_javascript)
        original = state["original_input"]
        raw = [item["raw_item"] for item in state["generated_items"]]
        self.names = call_names([*(original if isinstance(original, list) else []), *raw])
        self.executed = {call for call, made in state["context"]["tool_invocations"].items() if made["executed"]}

    def write(self) -> dict[str, Any]:
        state = self.state
        for key, why in _REFUSED.items():
            if state.get(key):
                raise refuse_javascript(self.at(key), why)
        responses = [self.response(response, i) for i, response in enumerate(state["model_responses"])]
        written = {
            "$schemaVersion": SCHEMA,
            "currentTurn": state["current_turn"],
            "currentAgent": self.named(state["current_agent"], "current_agent"),
            "originalInput": self.original_input(),
            "modelResponses": responses,
            "context": self.context(),
            "toolUseTracker": state["tool_use_tracker"],
            "maxTurns": state["max_turns"],
            "noActiveAgentRun": False,
            "currentTurnInProgress": True,
            **to_javascript_results(state, self.agent, self.where),
            "currentStep": self.step(),
            "generatedItems": self.generated_items(),
            **self.processed(),
            "currentTurnPersistedItemCount": self.persisted(),
            **self.conversation(),
            **to_javascript_trace(state.get("trace"), state["current_agent"]["name"], self.at("trace")),
        }
        if responses:
            written["lastModelResponse"] = responses[-1]
        return written

    def at(self, path: str) -> str:
        return f"{self.where}{path}"

    # What was said and done

    def original_input(self) -> str | list[dict[str, Any]]:
        given = self.state["original_input"]
        if isinstance(given, str):
            return given
        return [to_javascript_item(item, self.at(f"original_input[{i}]"), self.names) for i, item in enumerate(given)]

    def response(self, response: dict[str, Any], number: int) -> dict[str, Any]:
        where = self.at(f"model_responses[{number}]")
        output = [
            to_javascript_item(item, f"{where}.output[{i}]", self.names) for i, item in enumerate(response["output"])
        ]
        made = {"usage": to_javascript_usage(response["usage"]), "output": output}
        ids = {"responseId": response.get("response_id"), "requestId": response.get("request_id")}
        return {**made, **{key: value for key, value in ids.items() if value is not None}}

    def items(self, items: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
        return [self.item(item, self.at(f"{path}[{i}]")) for i, item in enumerate(items)]

    def generated_items(self) -> list[dict[str, Any]]:
        kept = set(self.state["generated_session_item_indexes"])
        for i, item in enumerate(self.state["session_items"]):
            # An approval that was given is no longer among the generated items.
            if i not in kept and item["type"] != "tool_approval_item":
                raise refuse_javascript(
                    self.at(f"session_items[{i}]"), "was hidden from the model by a handoff's filter"
                )
        return self.items(self.state["generated_items"], "generated_items")

    def item(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        kind = item["type"]
        if kind == "tool_approval_item":
            return self.approval(item, where)
        made = {"type": kind, "rawItem": to_javascript_item(item["raw_item"], f"{where}.raw_item", self.names)}
        if kind == "handoff_output_item":
            ends = {"sourceAgent": item["source_agent"], "targetAgent": item["target_agent"]}
            return made | {there: self.named(agent, where) for there, agent in ends.items()}
        made["agent"] = self.named(item["agent"], where)
        if kind in _PLAIN_ITEMS:
            return made
        if kind == "mcp_list_tools_item":
            return made | {"type": "tool_call_item"}
        if kind == "tool_call_output_item":
            return made | self.output(item, where)
        raise refuse_javascript(where, f"is of type '{kind}', which is not translated")

    def output(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        """A tool's result: JavaScript keeps its text, which is what the model saw."""
        output, raw = item.get("output"), item["raw_item"]
        if not isinstance(output, str):
            if self.agents[item["agent"]["name"]].tool_use_behavior != "run_llm_again":
                raise refuse_javascript(f"{where}.output", "is no text, and the agent may answer with it as it is")
            output = raw["output"] if isinstance(raw["output"], str) else json.dumps(output)
        made: dict[str, Any] = {"output": output}
        if item.get("custom_data"):
            made["customData"] = exact(item["custom_data"], f"{where}.custom_data")
        if raw["call_id"] in self.executed:
            made["executionStatus"] = "executed"
        return made

    def approval(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        raw = item["raw_item"]
        if raw.get("type") != "function_call" or item.get("tool_namespace") or item.get("allow_bare_name_alias"):
            raise refuse_javascript(where, "asks for a tool that is not a plain function")
        name = item.get("tool_name") or raw["name"]
        return {
            "type": "tool_approval_item",
            "rawItem": to_javascript_item(raw, f"{where}.raw_item", self.names),
            "agent": self.named(item["agent"], where),
            "toolName": name,
            "functionToolStateKey": bare_key(name),
        }

    def named(self, agent: Mapping[str, Any], where: str) -> dict[str, str]:
        if agent["name"] not in self.agents:
            raise refuse_javascript(where, f"names the agent '{agent['name']}'. Agents: {', '.join(self.agents)}")
        return {"name": agent["name"]}

    # What is to be done

    def step(self) -> dict[str, Any]:
        step = self.state["current_step"] or {}
        if step.get("type") != "next_step_interruption":
            raise refuse_javascript(
                self.at("current_step"), "waits for no approval: only a run that waits can be carried"
            )
        data = step["data"]
        if data.get("response_accepted") or not data.get("llm_end_hooks_started", True):
            raise refuse_javascript(self.at("current_step"), "stands between a model's response and its processing")
        where = self.at("current_step.data.interruptions")
        return {
            "type": "next_step_interruption",
            "data": {
                "interruptions": [self.approval(item, f"{where}[{i}]") for i, item in enumerate(data["interruptions"])]
            },
        }

    def processed(self) -> dict[str, Any]:
        response, path = self.state["last_processed_response"], "last_processed_response"
        if response is None:
            raise refuse_javascript(self.at(path), "is missing: what the response asked for is not known")
        for key, kind in _REFUSED_ACTIONS.items():
            if response.get(key):
                raise refuse_javascript(
                    self.at(f"{path}.{key}"), f"has calls of {kind} tools, which are not translated"
                )
        nested = {
            f"{bare_key(entry['tool_call']['name'])}:{entry['tool_call']['call_id']}": self.nested(entry, i)
            for i, entry in enumerate(response["functions"])
            if "agent_run_state" in entry
        }
        done = {entry["tool_call"]["call_id"] for entry in [*response["functions"], *response["handoffs"]]}
        for i, item in enumerate(response["new_items"]):
            if item["raw_item"].get("type") == "function_call" and item["raw_item"]["call_id"] not in done:
                where = self.at(f"{path}.new_items[{i}]")
                raise refuse_javascript(where, f"calls '{item['raw_item']['name']}', which the agent doesn't have")
        return {
            "lastProcessedResponse": {
                "newItems": self.items(response["new_items"], f"{path}.new_items"),
                "toolsUsed": response["tools_used"],
                "handoffs": [self.handoff(entry, i) for i, entry in enumerate(response["handoffs"])],
                "functions": [self.function(entry, i) for i, entry in enumerate(response["functions"])],
                "functionToolsNotFound": [],
                "computerActions": [],
                "shellActions": [],
                "applyPatchActions": [],
                "mcpApprovalRequests": [],
            },
            "pendingAgentToolRuns": nested,
        }

    def persisted(self) -> int:
        state = self.state
        response = state["last_processed_response"]["new_items"]
        return to_javascript_count(state["current_turn_persisted_item_count"], state["generated_items"], response)

    def function(self, entry: dict[str, Any], number: int) -> dict[str, Any]:
        where, tool = self.at(f"last_processed_response.functions[{number}]"), entry["tool"]
        if tool.get("namespace") or (tool.get("lookupKey") or {}).get("kind", "bare") != "bare":
            raise refuse_javascript(where, f"calls '{tool['name']}', which is not a plain function")
        described = {"type": "function", "name": tool["name"], "description": tool.get("description", "")}
        return {
            "toolCall": to_javascript_item(entry["tool_call"], f"{where}.tool_call", self.names),
            "tool": {**described, "parameters": tool.get("paramsJsonSchema", {})},
            "mcpToolBinding": self.mcp_binding(entry["tool_call"], where),
        }

    def mcp_binding(self, call: dict[str, Any], where: str) -> dict[str, Any] | None:
        """Whose tool of which MCP server was called; it must have answered, as JavaScript asks nobody about these."""
        binding = self.state["last_processed_response"].get("mcp_tool_bindings", {}).get(call["call_id"])
        if binding is None:
            return None
        if not self.state["context"]["tool_invocations"].get(call["call_id"], {}).get("completed"):
            raise refuse_javascript(
                where, f"waits for '{call['name']}', a tool of an MCP server, which is not translated"
            )
        return dict(zip(("serverName", "toolName", "serverIndex"), binding, strict=True))

    def handoff(self, entry: dict[str, Any], number: int) -> dict[str, Any]:
        where, tool = self.at(f"last_processed_response.handoffs[{number}]"), entry["handoff"]["tool_name"]
        target = handoff_target(self.agents[self.state["current_agent"]["name"]], tool)
        if target is None:
            raise refuse_javascript(where, f"is the handoff '{tool}', which the agent doesn't have")
        return {
            "toolCall": to_javascript_item(entry["tool_call"], f"{where}.tool_call", self.names),
            "handoff": {"toolName": tool, "agentName": target},
            "targetAgent": self.named({"name": target}, where),
        }

    def nested(self, entry: dict[str, Any], number: int) -> str:
        """The waiting run of an agent that is a tool, as the text that JavaScript keeps of it."""
        where, tool = f"last_processed_response.functions[{number}]", entry["tool_call"]["name"]
        agent = agent_behind(self.agents[self.state["current_agent"]["name"]], tool)
        if agent is None:
            raise refuse_javascript(self.at(where), f"calls '{tool}', which is not an agent as a tool any more")
        inner = _Writer(entry["agent_run_state"], agent, self.decided, self.at(f"{where}.agent_run_state."))
        return json.dumps(inner.write(), ensure_ascii=False)

    # What is around it

    def context(self) -> dict[str, Any]:
        context = self.state["context"]
        if (context.get("context_meta") or {}).get("serialized_via", "mapping") not in {"mapping", "none"}:
            kind = context["context_meta"].get("class_path") or context["context_meta"].get("original_type")
            raise refuse_javascript(self.at("context.context"), f"is a '{kind}': only dictionaries are carried")
        # An agent as a tool shares its caller's approvals in JavaScript: all of them go to the outermost run.
        for key, decisions in decided_in_python(context, self.at("context")).items():
            self.decided.setdefault(key, Decisions()).update(decisions)
        made = {
            "usage": to_javascript_usage(context["usage"]),
            "approvals": {},
            "context": exact(context["context"] or {}, self.at("context.context")),
        }
        if context.get("tool_input") is not None:
            made["toolInput"] = exact(context["tool_input"], self.at("context.tool_input"))
        return made

    def conversation(self) -> dict[str, Any]:
        state = self.state
        if state.get("auto_previous_response_id") and not state.get("previous_response_id"):
            raise refuse_javascript(
                self.at("auto_previous_response_id"), "is set, and no response has an id to go on from"
            )
        made = {
            "conversationId": state.get("conversation_id"),
            "previousResponseId": state.get("previous_response_id"),
            "reasoningItemIdPolicy": state.get("reasoning_item_id_policy"),
        }
        return {key: value for key, value in made.items() if value is not None}
