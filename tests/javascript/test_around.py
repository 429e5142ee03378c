"""What stands around the conversation: guardrails, trace, the server's conversation, custom data, tool errors."""

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from agents import Runner, SQLiteSession
from agents.mcp import MCPServerStdio

from tests.javascript.conftest import JavaScript
from tests.javascript.python_side import Description, PythonSide, decide
from timestep.agents.javascript import from_javascript, to_javascript

DESK: Description = {
    "desk": {
        "tools": [{"name": "send", "approval": True}, {"name": "look_up"}],
        "plan": [
            [
                {"call": "call_1", "name": "send", "arguments": "{}"},
                {"call": "call_2", "name": "look_up", "arguments": "{}"},
            ],
            "done",
        ],
    }
}
GUARDED: Description = {"desk": {**DESK["desk"], "guardrails": ["polite", "short"]}}
YES = [{"call": "call_1", "approve": True}]


async def test_guardrails_that_have_run_do_not_run_again(javascript: JavaScript) -> None:
    side = PythonSide(GUARDED)
    state = (await side.run("hello", {})).to_state()
    over = to_javascript(state, side.agent)
    assert [result["guardrail"]["name"] for result in over["inputGuardrailResults"]] == ["polite", "short"]
    done = javascript(GUARDED, state=json.dumps(over), decisions=YES)
    assert (done["output"], done["guardrails"]) == ("done", [])
    first = javascript(GUARDED, input="hello", context={})
    assert sorted(first["guardrails"]) == ["polite", "short"]
    side = PythonSide(GUARDED)
    state = await from_javascript(first["state"], side.agent)
    decide(state, YES)
    result = await side.run(state)
    assert (result.final_output, side.log["guardrails"]) == ("done", [])
    assert [kept.output.output_info for kept in result.input_guardrail_results] == [
        {"looked_at": "polite"},
        {"looked_at": "short"},
    ]


async def test_the_trace_goes_on_in_the_other_language(javascript: JavaScript) -> None:
    side = PythonSide(DESK)
    state = (await side.run("hello", {})).to_state()
    trace = state.to_json()["trace"]
    done = javascript(DESK, state=json.dumps(to_javascript(state, side.agent)), decisions=YES)
    assert {span["trace"] for span in done["traces"] if "span" in span} == {trace["id"]}
    first = javascript(DESK, input="hello", context={})
    loaded = (await from_javascript(first["state"], side.agent)).to_json()["trace"]
    assert loaded == first["state"]["trace"]


async def test_a_conversation_kept_by_the_server_goes_on(javascript: JavaScript) -> None:
    side = PythonSide(DESK)
    state = (await side.run("hello", {}, conversation="conv_1")).to_state()
    done = javascript(DESK, state=json.dumps(to_javascript(state, side.agent)), decisions=YES)
    assert done["models"][-1]["conversation"] == "conv_1"
    assert [item["callId"] for item in done["models"][-1]["input"]] == ["call_2", "call_1"]
    first = javascript(DESK, input="hello", context={}, conversation="conv_2")
    state = await from_javascript(first["state"], side.agent)
    decide(state, YES)
    await side.run(state)
    assert side.log["models"][-1]["conversation"] == "conv_2"
    assert {item["call_id"] for item in side.log["models"][-1]["input"]} == {"call_1", "call_2"}


TURNS: Description = {
    "desk": {
        "tools": [{"name": "send", "approval": True}, {"name": "look_up"}],
        "plan": [
            [{"call": "call_0", "name": "look_up", "arguments": "{}"}],
            [
                {"call": "call_1", "name": "send", "arguments": "{}"},
                {"call": "call_2", "name": "look_up", "arguments": "{}"},
            ],
            [{"call": "call_3", "name": "send", "arguments": "{}"}],
            "done",
        ],
    }
}


async def test_a_session_gets_each_item_once(javascript: JavaScript) -> None:
    """Python with a session, over JavaScript, back to Python with the same session."""

    async def run(through_javascript: bool) -> list[Any]:
        side, session = PythonSide(TURNS), SQLiteSession("s")
        result = await Runner.run(side.agent, "hello", context={}, session=session)
        for call in ("call_1", "call_3"):
            state = result.to_state()
            if through_javascript:
                over = to_javascript(state, side.agent)
                there = javascript(TURNS, state=json.dumps(over), run=False)["state"]
                assert there["currentTurnPersistedItemCount"] == len(there["generatedItems"])
                state = await from_javascript(there, side.agent)
            decide(state, [{"call": call, "approve": True}])
            result = await Runner.run(side.agent, state, session=session)
        assert result.final_output == "done"
        return await session.get_items()

    assert await run(True) == await run(False)


async def test_a_context_comes_back_equal_in_javascripts_spelling(javascript: JavaScript) -> None:
    context = {"b": 1.0, "10": [2.5, -0.0, 1e16, 1e22], "9": {"deep": 3.0, "none": None, "yes": True}}
    side = PythonSide(DESK)
    state = (await side.run("hello", context)).to_state()
    there = javascript(DESK, state=json.dumps(to_javascript(state, side.agent)), run=False)["state"]
    loaded = await from_javascript(there, side.agent)
    assert loaded._context is not None
    found = loaded._context.context
    assert found == context
    # JavaScript has one kind of numbers, and puts keys that are integers first.
    assert json.dumps(found) == (
        '{"9": {"deep": 3, "none": null, "yes": true}, "10": [2.5, 0, 10000000000000000, 1e+22], "b": 1}'
    )


async def test_a_call_of_an_mcp_server_that_was_answered_stays_answered(javascript: JavaScript, tmp_path: Path) -> None:
    agents: Description = {
        "desk": {
            "tools": [{"name": "send", "approval": True}],
            "plan": [
                [
                    {"call": "call_1", "name": "send", "arguments": "{}"},
                    {"call": "call_2", "name": "measure", "arguments": '{"thing":"rope"}'},
                ],
                "done",
            ],
        }
    }
    log = tmp_path / "calls.log"
    command = {"command": sys.executable, "args": [str(Path(__file__).with_name("mcp_server.py")), str(log)]}
    first = javascript(agents, input="hello", context={}, mcp=command)
    async with MCPServerStdio(params=command, name="ruler") as server:  # type: ignore[arg-type]
        side = PythonSide(agents)
        side.agent.mcp_servers = [server]
        state = (await side.run("hello", {})).to_state()
        there = javascript(agents, state=json.dumps(to_javascript(state, side.agent)), decisions=YES, mcp=command)
        assert there["output"] == "done"
        back = await from_javascript(first["state"], side.agent)
        decide(back, YES)
        assert (await side.run(back)).final_output == "done"
    assert log.read_text() == "rope\nrope\n"  # once in each language's own first half
    for models in (there["models"], side.log["models"]):
        assert "rope is 4 long" in json.dumps(models[-1]["input"])


async def test_custom_data_and_what_guardrails_said_of_tools_are_carried(javascript: JavaScript) -> None:
    side = PythonSide(DESK)
    written = (await side.run("hello", {})).to_state().to_json()
    items = [written["generated_items"], written["session_items"]]
    for item in (item for kept in items for item in kept if item["type"] == "tool_call_output_item"):
        item["custom_data"] = {"row_id": 7, "someKey": {"in_ner": None}}
    said = {"type": "reject_content", "message": "no"}
    for kind in ("input", "output"):
        guardrail = {"type": f"tool_{kind}", "name": "g"}
        result = {"guardrail": guardrail, "output": {"outputInfo": {"a_b": 1}, "behavior": said}}
        written[f"tool_{kind}_guardrail_results"] = [result]
    over = javascript(DESK, state=json.dumps(to_javascript(written, side.agent)), run=False)["state"]
    assert over["toolInputGuardrailResults"][0]["output"]["behavior"] == {"type": "rejectContent", "message": "no"}
    back = (await from_javascript(over, side.agent)).to_json()
    for key in ("tool_input_guardrail_results", "tool_output_guardrail_results"):
        assert back[key] == written[key]
    assert [item.get("custom_data") for item in back["generated_items"]] == [
        item.get("custom_data") for item in written["generated_items"]
    ]


def nasty(random: Random, depth: int = 3) -> Any:
    """Any JSON, with keys that a careless translation would rename, merge or lose."""
    keys = ["some_key", "someKey", "SomeKey", "call_id", "callId", "raw_item", "rawItem", "type", "agent", "$ref"]
    keys += ["constructor", "toString", "a.b", "", "10", "2", "ключ", "schema_version", "providerData", "__proto__x"]
    match random.randrange(8 if depth else 5):
        case 0:
            return random.choice([None, True, False])
        case 1:
            return random.randint(-(2**53) + 1, 2**53 - 1)
        case 2:
            return random.random() * 10 ** random.randint(-9, 9)
        case 3 | 4:
            return "".join(random.choices('aZ_é\\"\n\u2028漢😀 {}$', k=random.randrange(9)))
        case 5:
            return [nasty(random, depth - 1) for _ in range(random.randrange(4))]
        case _:
            return {key: nasty(random, depth - 1) for key in random.sample(keys, random.randrange(6))}


@pytest.mark.parametrize("seed", range(12))
async def test_values_pass_untouched(javascript: JavaScript, seed: int) -> None:
    random = Random(seed)
    context = {f"top_{i}": nasty(random) for i in range(8)}
    arguments = json.dumps({"an_arg": nasty(random), "anArg": nasty(random)}, ensure_ascii=bool(seed % 2))
    name = random.choice(["send_it", "sendIt", "Send_It_2"])
    plan = [[{"call": "call_1", "name": name, "arguments": arguments}], "done"]
    agents: Description = {"desk": {"tools": [{"name": name, "approval": True}], "plan": plan}}
    side = PythonSide(agents)
    state = (await side.run("hello", context)).to_state()
    there = javascript(agents, state=json.dumps(to_javascript(state, side.agent)), run=False)
    assert there["context"] == context
    assert [(item["name"], item["arguments"]) for item in there["pending"]] == [(name, arguments)]
    back = await from_javascript(there["state"], side.agent)
    assert back.to_json()["context"]["context"] == context
    assert [(item.tool_name, item.arguments) for item in back.get_interruptions()] == [(name, arguments)]
