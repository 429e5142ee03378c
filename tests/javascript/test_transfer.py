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
            return ("result", item["call_id"], handoff_text(item["output"]))
        case "function_call_result":
            return ("result", item["callId"], handoff_text(item["output"]["text"]))
        case "message":
            content = item["content"]
            return (item["role"], content if isinstance(content, str) else [part["text"] for part in content])
        case other:
            return (other, item.get("id"))


def handoff_text(output: str) -> str:
    """The SDKs write the same JSON for a handoff, one of them with a space in it."""
    return output.replace('{"assistant": ', '{"assistant":')


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


SHOP: Description = {
    "desk": {
        "handoffs": ["billing"],
        "tools": [{"name": "notify", "approval": True}, {"name": "look_up"}],
        "plan": [
            [{"call": "call_l", "name": "look_up", "arguments": "{}"}],
            [{"call": "call_h", "name": "transfer_to_billing", "arguments": "{}"}],
            "unreached",
        ],
    },
    "billing": {
        "tools": [{"name": "charge", "approval": True}, {"name": "mail", "approval": True}],
        "handoffs": ["desk"],
        "plan": [
            [
                {"call": "call_1", "name": "charge", "arguments": '{"amount":3}'},
                {"call": "call_2", "name": "charge", "arguments": '{"amount":4}'},
                {"call": "call_3", "name": "mail", "arguments": '{"to":"a@b.example"}'},
            ],
            "billed",
        ],
    },
}
SPLIT = [
    {"call": "call_1", "approve": True},
    {"call": "call_2", "approve": False, "message": "too much"},
    {"call": "call_3", "approve": True},
]


async def test_handoff_with_parallel_approvals_to_javascript(javascript: JavaScript) -> None:
    whole = await undisturbed(SHOP, SPLIT, "bill me", CONTEXT)
    side = PythonSide(SHOP)
    state = (await side.run("bill me", CONTEXT)).to_state()
    done = javascript(SHOP, state=json.dumps(to_javascript(state, side.agent)), decisions=SPLIT)
    assert done["output"] == "billed"
    assert sorted(side.log["ran"] + done["ran"]) == sorted(whole.log["ran"])
    assert seen(done["models"][-1]["input"]) == seen(whole.log["models"][-1]["input"])
    assert ("result", "call_2", "too much") in seen(done["models"][-1]["input"])


async def test_handoff_with_parallel_approvals_to_python(javascript: JavaScript) -> None:
    whole = await undisturbed(SHOP, SPLIT, "bill me", CONTEXT)
    first = javascript(SHOP, input="bill me", context=CONTEXT)
    side = PythonSide(SHOP)
    state = await from_javascript(first["state"], side.agent)
    decide(state, SPLIT)
    assert (await side.run(state)).final_output == "billed"
    assert sorted(first["ran"] + side.log["ran"]) == sorted(whole.log["ran"])
    assert seen(side.log["models"][-1]["input"]) == seen(whole.log["models"][-1]["input"])


async def test_what_was_decided_before_the_transfer_holds_in_javascript(javascript: JavaScript) -> None:
    side = PythonSide(SHOP)
    state = (await side.run("bill me", CONTEXT)).to_state()
    decide(state, SPLIT[:2])
    text = json.dumps(to_javascript(state, side.agent))
    assert [(item["call"], item["decided"]) for item in javascript(SHOP, state=text, run=False)["pending"]] == [
        ("call_1", True),
        ("call_2", False),
        ("call_3", None),
    ]
    done = javascript(SHOP, state=text, decisions=SPLIT[2:])
    assert done["output"] == "billed"
    assert [line.split()[0] for line in done["ran"]] == ["charge", "mail"]
    assert ("result", "call_2", "too much") in seen(done["models"][-1]["input"])


async def test_what_was_decided_before_the_transfer_holds_in_python(javascript: JavaScript) -> None:
    first = javascript(SHOP, input="bill me", context=CONTEXT, decisions=SPLIT[:2])
    side = PythonSide(SHOP)
    state = await from_javascript(first["state"], side.agent)
    decide(state, SPLIT[2:])
    assert (await side.run(state)).final_output == "billed"
    assert [line.split()[0] for line in side.log["ran"]] == ["charge", "mail"]
    assert ("result", "call_2", "too much") in seen(side.log["models"][-1]["input"])


ALWAYS = [
    [{"call": "call_1", "approve": True, "always": True}],
    [{"call": "call_1", "approve": False, "always": True, "message": "never"}],
    [
        {"call": "call_1", "approve": True, "always": True},
        {"call": "call_2", "approve": False, "message": "but not this"},
    ],
    [{"call": "call_1", "approve": False, "always": True, "message": "no"}, {"call": "call_2", "approve": True}],
]
TWICE: Description = {
    "desk": {
        "tools": [{"name": "send", "approval": True}, {"name": "other", "approval": True}],
        "plan": [
            [
                {"call": "call_1", "name": "send", "arguments": '{"n":1}'},
                {"call": "call_2", "name": "send", "arguments": '{"n":2}'},
            ],
            [{"call": "call_3", "name": "send", "arguments": '{"n":3}'}],
            [{"call": "call_4", "name": "other", "arguments": "{}"}],
            [{"call": "call_5", "name": "send", "arguments": '{"n":5}'}],
            "sent",
        ],
    }
}


@pytest.mark.parametrize("decisions", ALWAYS)
async def test_a_decision_for_always_holds_in_javascript(
    javascript: JavaScript, decisions: list[dict[str, Any]]
) -> None:
    decisions = [*decisions, {"call": "call_4", "approve": True}]
    whole = await undisturbed(TWICE, decisions, "go", {})
    side = PythonSide(TWICE)
    state = (await side.run("go", {})).to_state()
    decide(state, decisions[:-1])
    second = javascript(TWICE, state=json.dumps(to_javascript(state, side.agent)))
    assert [item["call"] for item in second["pending"]] == ["call_4"]
    third = javascript(TWICE, state=json.dumps(second["state"]), decisions=decisions[-1:])
    assert side.log["ran"] + second["ran"] + third["ran"] == whole.log["ran"]
    assert seen(third["models"][-1]["input"]) == seen(whole.log["models"][-1]["input"])


@pytest.mark.parametrize("decisions", ALWAYS)
async def test_a_decision_for_always_holds_in_python(javascript: JavaScript, decisions: list[dict[str, Any]]) -> None:
    decisions = [*decisions, {"call": "call_4", "approve": True}]
    whole = await undisturbed(TWICE, decisions, "go", {})
    first = javascript(TWICE, input="go", context={}, decisions=decisions[:-1])
    side = PythonSide(TWICE)
    state = (await side.run(await from_javascript(first["state"], side.agent))).to_state()
    assert [item.call_id for item in state.get_interruptions()] == ["call_4"]
    decide(state, decisions[-1:])
    assert (await side.run(state)).final_output == "sent"
    assert first["ran"] + side.log["ran"] == whole.log["ran"]
    assert seen(side.log["models"][-1]["input"]) == seen(whole.log["models"][-1]["input"])


@pytest.mark.parametrize("decisions", ALWAYS[:2])
async def test_a_decision_for_always_without_a_waiting_call_is_carried_both_ways(
    javascript: JavaScript, decisions: list[dict[str, Any]]
) -> None:
    side = PythonSide(TWICE)
    state = (await side.run("go", {})).to_state()
    decide(state, decisions)
    state = (await side.run(state)).to_state()  # waits for "other" now
    over = javascript(TWICE, state=json.dumps(to_javascript(state, side.agent)), run=False)["state"]
    back = await from_javascript(over, side.agent)
    decide(back, [{"call": "call_4", "approve": True}])
    whole = await undisturbed(TWICE, [*decisions, {"call": "call_4", "approve": True}], "go", {})
    assert (await side.run(back)).final_output == "sent"
    assert side.log["ran"] == whole.log["ran"]
    assert seen(side.log["models"][-1]["input"]) == seen(whole.log["models"][-1]["input"])


NESTED: Description = {
    "desk": {
        "delegates": ["helper"],
        "tools": [{"name": "note", "approval": True}],
        "plan": [
            [
                {"call": "call_a", "name": "ask_helper", "arguments": '{"input":"find it"}'},
                {"call": "call_n", "name": "note", "arguments": '{"text":"x"}'},
            ],
            "desk done",
        ],
    },
    "helper": {
        "delegates": ["digger"],
        "tools": [{"name": "open_door", "approval": True}],
        "plan": [
            [
                {"call": "call_o", "name": "open_door", "arguments": '{"doorNumber":4}'},
                {"call": "call_d", "name": "ask_digger", "arguments": '{"input":"dig"}'},
            ],
            "helper done",
        ],
    },
    "digger": {
        "tools": [{"name": "dig", "approval": True}],
        "plan": [[{"call": "call_g", "name": "dig", "arguments": '{"depth_m":2}'}], "digger done"],
    },
}
INNER = [
    {"call": "call_n", "approve": True},
    {"call": "call_o", "approve": False, "message": "closed"},
    {"call": "call_g", "approve": True},
]


async def test_nested_agents_wait_in_javascript(javascript: JavaScript) -> None:
    whole = await undisturbed(NESTED, INNER, "go", CONTEXT)
    side = PythonSide(NESTED)
    state = (await side.run("go", CONTEXT)).to_state()
    text = json.dumps(to_javascript(state, side.agent))
    waiting = javascript(NESTED, state=text, run=False)["pending"]
    assert {item["call"] for item in waiting} == {"call_n", "call_o", "call_g"}
    done = javascript(NESTED, state=text, decisions=INNER)
    assert done["output"] == "desk done"
    assert sorted(done["ran"]) == sorted(whole.log["ran"])
    assert by_agent(done["models"]) == by_agent(whole.log["models"])


async def test_nested_agents_wait_in_python(javascript: JavaScript) -> None:
    whole = await undisturbed(NESTED, INNER, "go", CONTEXT)
    first = javascript(NESTED, input="go", context=CONTEXT)
    side = PythonSide(NESTED)
    state = await from_javascript(first["state"], side.agent)
    assert {item.call_id for item in state.get_interruptions()} == {"call_n", "call_o", "call_g"}
    decide(state, INNER)
    assert (await side.run(state)).final_output == "desk done"
    assert sorted(side.log["ran"]) == sorted(whole.log["ran"])
    assert by_agent(side.log["models"]) == by_agent(whole.log["models"])


@pytest.mark.parametrize("always", [False, True])
async def test_nested_decisions_are_carried(javascript: JavaScript, always: bool) -> None:
    decisions = [{**decision, "always": always} for decision in INNER]
    side = PythonSide(NESTED)
    state = (await side.run("go", CONTEXT)).to_state()
    decide(state, decisions)
    there = javascript(NESTED, state=json.dumps(to_javascript(state, side.agent)))
    assert there["output"] == "desk done"
    assert sorted(line.split()[0] for line in there["ran"]) == ["dig", "note"]
    first = javascript(NESTED, input="go", context=CONTEXT, decisions=decisions)
    side = PythonSide(NESTED)
    assert (await side.run(await from_javascript(first["state"], side.agent))).final_output == "desk done"
    assert sorted(line.split()[0] for line in side.log["ran"]) == ["dig", "note"]


def by_agent(models: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The last input that each agent's model was sent."""
    return {call["agent"]: seen(call["input"]) for call in models}


@pytest.mark.parametrize("agents", [DESK, SHOP, NESTED, TWICE])
async def test_there_and_back_nothing_has_changed(javascript: JavaScript, agents: Description) -> None:
    side = PythonSide(agents)
    state = (await side.run([{"role": "user", "content": "go"}], CONTEXT)).to_state()
    loaded = javascript(agents, state=json.dumps(to_javascript(state, side.agent)), run=False)["state"]
    back = await from_javascript(loaded, side.agent)
    assert plain(back.to_json()) == plain(state.to_json())


async def test_python_to_javascript_to_python_to_the_end(javascript: JavaScript) -> None:
    decisions = [{"call": "call_1", "approve": True}, {"call": "call_3", "approve": False, "message": "enough"}]
    whole = await undisturbed(DESK, decisions, "hello", CONTEXT)
    side = PythonSide(DESK)
    state = (await side.run("hello", CONTEXT)).to_state()
    over = javascript(DESK, state=json.dumps(to_javascript(state, side.agent)), decisions=decisions[:1])
    back = await from_javascript(over["state"], side.agent)
    decide(back, decisions[1:])
    assert (await side.run(back)).final_output == "all done"
    assert side.log["ran"] == [whole.log["ran"][0]]
    assert over["ran"] == whole.log["ran"][1:]
    assert seen(side.log["models"][-1]["input"]) == seen(whole.log["models"][-1]["input"])


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """A state's JSON without what a loader makes anew: labels of tools, and where a decision could be bound."""
    made_anew = {"description", "title", "tool_origin", "tool_name", "current_response_generated_item_ownership"}
    return _without(state, made_anew | {"tool_invocations"})


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys and item is not None}
    return [_without(item, keys) for item in value] if isinstance(value, list) else value
