"""What stands around the conversation: guardrails, trace, the server's conversation, custom data, tool errors."""

import json
import sys
from pathlib import Path
from typing import Any

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
