"""What can't be carried is refused by name: what, where and why. Nothing here needs Node."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from agents import Agent, InputGuardrail, RunState

from tests.javascript.python_side import Description, PythonSide, decide
from timestep.agents.javascript import from_javascript, to_javascript
from timestep.errors import StateTransferError

DESK: Description = {
    "desk": {
        "tools": [{"name": "send", "approval": True}, {"name": "look_up"}],
        "handoffs": ["billing"],
        "delegates": ["helper"],
        "plan": [
            [
                {"call": "call_1", "name": "send", "arguments": "{}"},
                {"call": "call_2", "name": "look_up", "arguments": "{}"},
                {"call": "call_3", "name": "ask_helper", "arguments": '{"input":"x"}'},
            ],
            "done",
        ],
    },
    "billing": {"plan": ["paid"]},
    "helper": {
        "tools": [{"name": "dig", "approval": True}],
        "plan": [[{"call": "call_d", "name": "dig", "arguments": "{}"}], "dug"],
    },
}
HELPER = "last_processed_response.functions[2].agent_run_state"
JS_HELPER = "lastProcessedResponse.functions[2].pendingAgentToolRun"


@pytest.fixture
async def side() -> PythonSide:
    return PythonSide(DESK)


@pytest.fixture
async def state(side: PythonSide) -> RunState[Any, Agent[Any]]:
    result: RunState[Any, Agent[Any]] = (await side.run("hello", {"a": 1})).to_state()
    return result


def put(state: Any, path: str, value: Any) -> None:
    """Sets ``value`` at a path such as ``items[2].raw_item``."""
    *steps, last = [int(s) if s.isdigit() else s for s in path.replace("[", ".").replace("]", "").split(".")]
    for step in steps:
        state = state[step]
    state[last] = value


def first_name(path: str) -> str:
    return path.split(".")[0].split("[")[0].replace("generated_session_item_indexes", "session_items")


TO_JAVASCRIPT: list[tuple[str, Any, str]] = [
    ("$schemaVersion", "1.20", "is '1.20', not '1.21'"),
    ("context", {}, "is damaged"),
    ("model_responses", None, "is damaged"),
    ("pending_input", [{"role": "user", "content": "more"}], "waits for the next turn"),
    ("pending_session_write", {"session_id": "s"}, "not settled"),
    ("sandbox", {"kind": "x"}, "sandbox"),
    ("terminal_unrecoverable", True, "has ended"),
    ("nested_history_owned_session_item_refs", [{"index": 0}], "nested handoff history"),
    ("current_step", None, "waits for no approval"),
    ("current_step", {"type": "next_step_run_again"}, "waits for no approval"),
    ("current_step.data.response_accepted", True, "between a model's response and its processing"),
    ("current_step.data.interruptions[0].tool_namespace", "crm", "not a plain function"),
    ("output_guardrail_results", [{}], "has ended"),
    ("auto_previous_response_id", True, "no response has an id"),
    ("trace.tracing_api_key", "sk-secret", "is a secret"),
    ("generated_session_item_indexes[0]", None, "hidden from the model"),
    ("context.context.deep", [{"n": 2**53}], "9007199254740992"),
    ("context.context.deep", float("inf"), "JSON doesn't have"),
    ("context.tool_input", {"n": -(2**60)}, "can't hold exactly"),
    ("context.approvals", {"shell": {"approved": True}}, "no functions"),
    ("context.hosted_mcp_approvals", [{}], "no functions"),
    (
        "context.function_tool_approvals",
        [{"agent": {"name": "desk"}, "tool_key": "crm.send", "decision": {}}],
        "crm.send",
    ),
    ("last_processed_response.shell_actions", [{}], "shell"),
    ("last_processed_response.computer_actions", [{}], "computer"),
    ("last_processed_response.apply_patch_actions", [{}], "apply_patch"),
    ("last_processed_response.custom_tool_actions", [{}], "custom"),
    ("last_processed_response.mcp_approval_requests", [{}], "hosted MCP"),
    ("last_processed_response.mcp_tool_bindings", {"call_1": ["s", "t", 0]}, "MCP"),
    ("last_processed_response", None, "is missing"),
    ("last_processed_response.functions[0].tool.namespace", "crm", "not a plain function"),
    ("last_processed_response.functions[2].tool_call.name", "ask_nobody", "not an agent as a tool any more"),
    ("generated_items[0].raw_item.type", "computer_call", "'computer_call'"),
    ("generated_items[0].raw_item.namespace", "crm", "namespace 'crm'"),
    ("generated_items[0].raw_item.caller", {"type": "program"}, "'program'"),
    ("generated_items[0].raw_item.provider_data", {"model": "m", "thought_signature": "x"}, "'thought_signature'"),
    ("generated_items[0].agent.name", "nobody", "'nobody'"),
    ("generated_items[0].type", "mcp_approval_request_item", "'mcp_approval_request_item'"),
    ("original_input", [{"role": "developer", "content": "x"}], "'developer'"),
    ("original_input", [{"role": "system", "content": [{"type": "input_text", "text": "x"}]}], "system message"),
    ("original_input", [{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio'"),
    ("original_input", [{"role": "user", "content": [{"type": "input_image"}]}], "none of 'file_id', 'image_url'"),
    ("original_input", [{"type": "function_call_output", "call_id": "c", "output": "x"}], "call 'c'"),
    (f"{HELPER}.sandbox", {"kind": "x"}, "sandbox"),
    (f"{HELPER}.context.context.big", 2**64, "can't hold exactly"),
    (f"{HELPER}.generated_items[0].raw_item.type", "shell_call", "'shell_call'"),
]


@pytest.mark.parametrize(("path", "value", "why"), TO_JAVASCRIPT, ids=lambda value: str(value)[:60])
async def test_to_javascript_refuses(
    side: PythonSide, state: RunState[Any, Agent[Any]], path: str, value: Any, why: str
) -> None:
    written = state.to_json()
    to_javascript(written, side.agent)  # can be carried as it is
    put(written, path, value)
    with pytest.raises(StateTransferError) as refused:
        to_javascript(written, side.agent)
    assert refused.value.target == "JavaScript"
    assert str(refused.value).startswith(f"This state can't be carried to JavaScript: '{refused.value.where}' ")
    assert why in str(refused.value)
    assert refused.value.where == "$" or refused.value.where.startswith(first_name(path))
    if path.startswith(HELPER):
        assert refused.value.where.startswith(f"{HELPER}.")


TO_PYTHON: list[tuple[str, Any, str]] = [
    ("$schemaVersion", "1.16", "is '1.16', not one of"),
    ("context", {}, "is damaged"),
    ("modelResponses", None, "is damaged"),
    ("initialInputGuardrailsCompleted", False, "doesn't say that the input was let through"),
    ("pendingSessionWrite", {"sessionId": "s"}, "not settled"),
    ("sandbox", {"backendId": "x"}, "sandbox"),
    ("outputGuardrailResults", [{}], "has ended"),
    ("currentStep", {"type": "next_step_final_output", "output": "x"}, "waits for no approval"),
    ("currentStep", {"type": "next_step_handoff", "newAgent": {"name": "billing"}}, "waits for no approval"),
    ("currentStep.data.responseAccepted", True, "between a model's response and its processing"),
    ("currentStep.data.interruptions[0].rawItem.type", "shell_call", "not a plain function"),
    ("currentAgent.name", "nobody", "'nobody'. Agents: desk"),
    ("currentAgent.identity", "desk#2", "several agents"),
    ("trace.tracing_api_key", "sk-secret", "is a secret"),
    ("context.approvals", {"shell": {"approved": True}}, "no functions"),
    ("context.hostedMcpApprovals", {"x": {}}, "no functions"),
    ("context.legacyFunctionApprovals", {"send": {}}, "no functions"),
    (
        "context.functionApprovals",
        [{"agentIdentity": "desk", "approvals": {'["namespaced","a","b"]': {}}}],
        "namespaced",
    ),
    (
        "context.functionApprovals",
        [{"agentIdentity": "gone", "approvals": {'["bare","b"]': {"approved": True, "rejected": []}}}],
        "'gone'",
    ),
    ("lastProcessedResponse", None, "is missing"),
    ("lastProcessedResponse.shellActions", [{}], "shell"),
    ("lastProcessedResponse.computerActions", [{}], "computer"),
    ("lastProcessedResponse.applyPatchActions", [{}], "apply_patch"),
    ("lastProcessedResponse.mcpApprovalRequests", [{}], "hosted MCP"),
    ("lastProcessedResponse.functionToolsNotFound", [{}], "doesn't have"),
    ("lastProcessedResponse.functions[0].mcpToolBinding", {"serverName": "s"}, "MCP server"),
    ("lastProcessedResponse.functions[0].toolCall.name", "gone", "calls 'gone', which 'desk' doesn't have"),
    (
        "lastProcessedResponse.handoffs",
        [
            {
                "toolCall": {"type": "function_call", "callId": "h", "name": "transfer_to_x", "arguments": "{}"},
                "handoff": {"toolName": "transfer_to_x"},
            }
        ],
        "calls 'transfer_to_x'",
    ),
    ("pendingAgentToolRuns.other", "{}", "belongs to no call"),
    ("generatedItems[0].rawItem.type", "computer_call", "'computer_call'"),
    ("generatedItems[0].rawItem.surprise", 1, "'surprise'"),
    ("generatedItems[0].rawItem.providerData", {"name": "other"}, "contradicts"),
    ("generatedItems[0].rawItem.namespace", "crm", "namespace 'crm'"),
    ("generatedItems[0].type", "tool_search_call_item", "'tool_search_call_item'"),
    ("originalInput", [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}], "'audio'"),
    ("originalInput", [{"type": "hosted_tool_call", "name": "mcp_approval_request"}], "'mcp_approval_request'"),
    ("originalInput", [{"type": "unknown"}], "'unknown'"),
    ("originalInput", [{"type": "reasoning", "content": []}], "without an id"),
]


@pytest.mark.parametrize(("path", "value", "why"), TO_PYTHON, ids=lambda value: str(value)[:60])
async def test_to_python_refuses(
    side: PythonSide, state: RunState[Any, Agent[Any]], path: str, value: Any, why: str
) -> None:
    js = to_javascript(state, side.agent)
    await from_javascript(js, side.agent)  # can be carried as it is
    put(js, path, value)
    with pytest.raises(StateTransferError) as refused:
        await from_javascript(js, side.agent)
    assert refused.value.target == "Python"
    assert why in str(refused.value)
    assert refused.value.where == "$" or refused.value.where.startswith(first_name(path))


async def test_python_reads_back_what_it_wrote_for_javascript(
    side: PythonSide, state: RunState[Any, Agent[Any]]
) -> None:
    decide(state, [{"call": "call_1", "approve": False, "message": "no"}, {"call": "call_d", "approve": True}])
    js = to_javascript(state, side.agent)
    assert to_javascript(await from_javascript(js, side.agent), side.agent) == js


async def test_input_for_the_next_turn_is_carried_to_python(side: PythonSide, state: RunState[Any, Agent[Any]]) -> None:
    js = to_javascript(state, side.agent)
    said = {"type": "message", "role": "user", "content": "and hurry"}
    js["pendingInput"] = [said]
    js["generatedItems"].insert(0, {"type": "input_item", "rawItem": said, "agent": {"name": "desk"}, "inputId": "i1"})
    loaded = (await from_javascript(js, side.agent)).to_json()
    assert loaded["pending_input"] == [said]
    assert loaded["generated_items"][0]["raw_item"] == said
    assert loaded["generated_items"][0]["input_id"] == "i1"


async def test_what_a_nested_run_in_javascript_holds_is_refused_at_its_place(
    side: PythonSide, state: RunState[Any, Agent[Any]]
) -> None:
    js = to_javascript(state, side.agent)
    [(key, text)] = js["pendingAgentToolRuns"].items()
    js["pendingAgentToolRuns"][key] = json.dumps({**json.loads(text), "sandbox": {"backendId": "x"}})
    with pytest.raises(StateTransferError, match="sandbox") as refused:
        await from_javascript(js, side.agent)
    assert refused.value.where == f"{JS_HELPER}.sandbox"


async def test_a_guardrail_that_is_not_shown_to_have_run_is_refused(
    side: PythonSide, state: RunState[Any, Agent[Any]]
) -> None:
    side.agent.input_guardrails = [InputGuardrail(guardrail_function=lambda *_: None, name="polite")]  # type: ignore[arg-type, return-value]
    with pytest.raises(StateTransferError, match="don't show that 'polite' of 'desk' has run"):
        to_javascript(state, side.agent)


async def test_a_context_that_is_no_dictionary_is_refused(side: PythonSide) -> None:
    @dataclass
    class Own:
        a: int = 1

    plain: Description = {"desk": {**DESK["desk"], "tools": [{"name": "send", "approval": True}]}}
    plain["desk"] |= {
        "plan": [[{"call": "call_1", "name": "send", "arguments": "{}"}]],
        "handoffs": [],
        "delegates": [],
    }
    side = PythonSide(plain)
    state = (await side.run("hello", Own())).to_state()
    with pytest.raises(StateTransferError, match=r"'context' can't be written: .* mapping"):
        to_javascript(state, side.agent)
    with pytest.raises(StateTransferError, match=r"Own.*only dictionaries are carried"):
        to_javascript(state.to_json(), side.agent)


async def test_a_run_that_has_ended_is_refused(side: PythonSide, state: RunState[Any, Agent[Any]]) -> None:
    decide(state, [{"call": "call_1", "approve": True}, {"call": "call_d", "approve": True}])
    result = await side.run(state)
    assert result.final_output == "done"
    with pytest.raises(StateTransferError, match="waits for no approval"):
        to_javascript(result.to_state(), side.agent)


async def test_two_agents_of_one_name_are_refused(side: PythonSide, state: RunState[Any, Agent[Any]]) -> None:
    side.agent.handoffs.append(Agent(name="billing"))
    with pytest.raises(StateTransferError, match="two agents of the name 'billing'"):
        to_javascript(state, side.agent)


@pytest.mark.parametrize("gone", ["send", "ask_helper"])
async def test_a_tool_that_the_agent_has_no_more_is_named(
    side: PythonSide, state: RunState[Any, Agent[Any]], gone: str
) -> None:
    js = to_javascript(state, side.agent)
    side.agent.tools = [tool for tool in side.agent.tools if tool.name != gone]
    with pytest.raises(StateTransferError, match=f"{gone}|helper"):
        await from_javascript(js, side.agent)


async def test_a_value_that_the_agent_may_answer_with_is_refused(
    side: PythonSide, state: RunState[Any, Agent[Any]]
) -> None:
    written = state.to_json()
    outputs = [item for item in written["generated_items"] if item["type"] == "tool_call_output_item"]
    outputs[0]["output"] = {"v": 1}
    to_javascript(written, side.agent)  # the model's text of it is what counts
    side.agent.tool_use_behavior = "stop_on_first_tool"
    with pytest.raises(StateTransferError, match="is no text"):
        to_javascript(written, side.agent)
