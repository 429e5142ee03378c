"""Runs that begin in one language and end in the other: what the second model sees is what the first would have."""

import json
from typing import Any

import pytest

from tests.javascript.conftest import JavaScript
from tests.javascript.python_side import Description, PythonSide, decide
from timestep.agents.javascript import from_javascript, to_javascript

CONTEXT = {"user_id": "u1", "someThing": {"inner_key": [1, {"deepKey": None}], "Ünï": "ß 漢"}, "call_id": "x"}
ARGUMENTS = json.dumps({"order_id": 7, "someKey": {"innerKey": "a_b", "call_id": 1}, "ok": True}, separators=(",", ":"))

DESK: Description = {
    "desk": {
        "tools": [{"name": "refundOrder", "approval": True}, {"name": "look_up"}],
        "plan": [
            [
                {"call": "call_1", "name": "refundOrder", "arguments": ARGUMENTS},
                {"call": "call_2", "name": "look_up", "arguments": "{}"},
            ],
            [{"call": "call_3", "name": "refundOrder", "arguments": '{"second":1}'}],
            "all done",
        ],
    }
}


def seen(items: list[dict[str, Any]]) -> list[Any]:
    """A model's input without the spelling of its language."""
    return [_seen(item) for item in items]


def _seen(item: dict[str, Any]) -> Any:
    match item.get("type", "message"):
        case "function_call":
            return ("call", item.get("call_id") or item["callId"], item["name"], item["arguments"])
        case "function_call_output":
            return ("result", item["call_id"], item["output"])
        case "function_call_result":
            return ("result", item["callId"], item["output"]["text"])
        case "message":
            content = item["content"]
            return (item["role"], content if isinstance(content, str) else [part["text"] for part in content])
        case other:
            return (other, item.get("id"))


async def undisturbed(agents: Description, decisions: list[dict[str, Any]], text: Any, context: Any) -> PythonSide:
    """The same run without a transfer, all of it in Python."""
    side = PythonSide(agents)
    result = await side.run(text, context)
    while result.interruptions:
        state = result.to_state()
        waiting = {item.call_id for item in state.get_interruptions()}
        decide(state, [d for d in decisions if d["call"] in waiting])
        result = await side.run(state)
    return side


@pytest.mark.parametrize("approve", [True, False])
async def test_python_to_javascript_to_the_end(javascript: JavaScript, approve: bool) -> None:
    decisions = [{"call": "call_1", "approve": approve, "message": "not today"}, {"call": "call_3", "approve": True}]
    whole = await undisturbed(DESK, decisions, "hello", CONTEXT)
    side = PythonSide(DESK)
    first = (await side.run("hello", CONTEXT)).to_state()
    second = javascript(DESK, state=json.dumps(to_javascript(first, side.agent)), decisions=decisions[:1])
    third = javascript(DESK, state=json.dumps(second["state"]), decisions=decisions[1:])
    assert third["output"] == "all done"
    assert side.log["ran"] + second["ran"] + third["ran"] == whole.log["ran"]
    assert seen(third["models"][-1]["input"]) == seen(whole.log["models"][-1]["input"])
    assert third["context"] == CONTEXT
    assert third["usage"] == {"requests": 3, "inputTokens": 30, "outputTokens": 15}


@pytest.mark.parametrize("approve", [True, False])
async def test_javascript_to_python_to_the_end(javascript: JavaScript, approve: bool) -> None:
    decisions = [{"call": "call_1", "approve": approve, "message": "not today"}, {"call": "call_3", "approve": True}]
    whole = await undisturbed(DESK, decisions, "hello", CONTEXT)
    first = javascript(DESK, input="hello", context=CONTEXT)
    side = PythonSide(DESK)
    state = await from_javascript(first["state"], side.agent)
    decide(state, decisions[:1])
    second = await side.run(state)
    state = second.to_state()
    decide(state, decisions[1:])
    third = await side.run(state)
    assert third.final_output == "all done"
    assert first["ran"] + side.log["ran"] == whole.log["ran"]
    assert seen(side.log["models"][-1]["input"]) == seen(whole.log["models"][-1]["input"])
    assert third.context_wrapper.context == CONTEXT
    assert third.context_wrapper.usage.requests == 3
    assert third.context_wrapper.usage.input_tokens_details.cached_tokens == 12
