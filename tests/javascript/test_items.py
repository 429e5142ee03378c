"""Every kind of item that is translated, through both SDKs' own loaders; and each kind that is refused, by name."""

import json
from typing import Any

from agents import RunState

from tests.javascript.conftest import JavaScript
from tests.javascript.python_side import Description, PythonSide, decide
from timestep.agents.javascript import from_javascript, to_javascript

ANNOTATION = {"type": "url_citation", "start_index": 0, "end_index": 4, "title": "aTitle", "url": "https://a.example"}
INPUT: list[dict[str, Any]] = [
    {"type": "compaction", "id": "cmp_1", "encrypted_content": "xyz"},
    {"role": "system", "content": "be_brief beBrief"},
    {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "look"},
            {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"},
            {"type": "input_image", "file_id": "file_1", "detail": "auto"},
            {"type": "input_file", "file_data": "data:text/plain;base64,aGk=", "filename": "a_b.txt"},
            {"type": "input_file", "file_url": "https://a.example/f"},
            {"type": "input_file", "file_id": "file_2"},
        ],
    },
    {
        "type": "message",
        "id": "msg_0",
        "role": "assistant",
        "status": "completed",
        "phase": "commentary",
        "content": [
            {"type": "output_text", "text": "seen", "annotations": [ANNOTATION]},
            {"type": "refusal", "refusal": "no more"},
        ],
    },
    {"type": "function_call", "call_id": "call_0", "name": "look_up", "arguments": '{"a_b":{"cD":1}}', "id": "fc_0"},
    {"type": "function_call_output", "call_id": "call_0", "output": [{"type": "input_text", "text": "part"}]},
]
INPUT_TEXT = "hello"
OUTPUT: list[dict[str, Any]] = [
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "thinking"}],
        "content": [{"type": "reasoning_text", "text": "raw thought"}],
        "encrypted_content": "abc",
    },
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "so", "annotations": [ANNOTATION]}],
    },
    {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "a_b cD"},
    },
    {
        "type": "mcp_call",
        "id": "mcp_1",
        "name": "some_tool",
        "server_label": "s",
        "arguments": '{"x_y":1}',
        "output": "5",
    },
    {
        "type": "mcp_list_tools",
        "id": "mcpl_1",
        "server_label": "s",
        "tools": [{"name": "some_tool", "input_schema": {"type": "object"}}],
    },
]
DESK: Description = {
    "desk": {
        "tools": [{"name": "send", "approval": True}, {"name": "look_up"}],
        "plan": [
            [*({"python": item} for item in OUTPUT), {"call": "call_1", "name": "send", "arguments": "{}"}],
            "done",
        ],
    }
}


def plain(value: Any) -> Any:
    """JSON without the fields that are null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list) else value


async def test_each_item_comes_back_as_it_went(javascript: JavaScript) -> None:
    side = PythonSide(DESK)
    state = (await side.run(INPUT, {})).to_state()
    there = javascript(DESK, state=json.dumps(to_javascript(state, side.agent)), run=False)["state"]
    back = await from_javascript(there, side.agent)
    before, after = plain(state.to_json()), plain(back.to_json())
    assert after["original_input"] == before["original_input"]
    assert [item["type"] for item in after["generated_items"]] == [item["type"] for item in before["generated_items"]]
    assert [i["raw_item"] for i in after["generated_items"]] == [i["raw_item"] for i in before["generated_items"]]
    assert after["model_responses"] == before["model_responses"]
    decide(back, [{"call": "call_1", "approve": True}])
    assert (await side.run(back)).final_output == "done"
    whole = PythonSide(DESK)
    unmoved = (await whole.run(INPUT, {})).to_state()
    decide(unmoved, [{"call": "call_1", "approve": True}])
    await whole.run(unmoved)
    assert plain(side.log["models"][-1]["input"]) == plain(whole.log["models"][-1]["input"])


def response(output: list[Any]) -> dict[str, Any]:
    """What the Responses API answers."""
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    fixed = {"id": "resp_w", "object": "response", "created_at": 0, "model": "m", "status": "completed"}
    return {**fixed, "output": output, "usage": {**usage, **details}}


def completion(**message: Any) -> dict[str, Any]:
    """What the Chat Completions API answers."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None, **message}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "c1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


TEXT = {"type": "output_text", "text": "over the wire", "annotations": []}
LAST = response([{"type": "message", "id": "msg_w", "role": "assistant", "status": "completed", "content": [TEXT]}])
LAST_CHAT = completion(content="over the wire")
YES = [{"call": "call_1", "approve": True}]


def wired(api: str, *bodies: Any) -> Description:
    return {"desk": {**DESK["desk"], "plan": {"api": api, "bodies": bodies}}}


async def test_javascript_sends_openai_what_python_would_send(javascript: JavaScript) -> None:
    side = PythonSide(DESK)
    state = (await side.run(INPUT, {})).to_state()
    wire = wired("responses", LAST)
    there = javascript(wire, state=json.dumps(to_javascript(state, side.agent)), decisions=YES)
    here = PythonSide(wire)
    state = await RunState.from_json(here.agent, state.to_json())
    decide(state, YES)
    assert there["output"] == (await here.run(state)).final_output == "over the wire"
    sent, expected = there["requests"][0]["input"], here.log["requests"][0]["input"]
    for item in [*sent, *expected]:
        if item.get("role") or item["type"] in {"function_call_output", "mcp_call"}:
            # JavaScript leaves a message's type out, and the output of an MCP call; Python a result's status.
            for key in ("type", "status", *(["output"] if item.get("type") == "mcp_call" else [])):
                item.pop(key, None)
    assert plain(sent) == plain(expected)


async def test_what_openai_answered_javascript_reaches_python_as_it_was(javascript: JavaScript) -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "send", "arguments": '{"aB":{"c_d":1}}'}
    answered = [*OUTPUT, {**call, "status": "completed"}]
    first = javascript(wired("responses", response(answered)), input="hello", context={})
    side = PythonSide(wired("responses", LAST))
    state = await from_javascript(first["state"], side.agent)
    loaded = plain(state.to_json())
    assert loaded["model_responses"][0]["output"] == answered
    assert [i["raw_item"] for i in loaded["generated_items"] if i["type"] != "tool_approval_item"] == answered
    decide(state, YES)
    assert (await side.run(state)).final_output == "over the wire"
    assert plain(side.log["requests"][0]["input"])[1:-1] == answered


FUNCTION = {"name": "send", "arguments": '{"aB":{"c_d":1}}'}
CHAT = completion(
    content="I send",
    tool_calls=[{"id": f"call_{n}", "type": "function", "function": FUNCTION} for n in (1, 2)],
    reasoning_content="thinking",
)
BOTH = [*YES, {"call": "call_2", "approve": False, "message": "once is enough"}]


def said(messages: list[dict[str, Any]]) -> list[Any]:
    """Messages to the Chat Completions API; a text is a string or a list of parts."""
    return [{**message, "content": text_of(message.get("content"))} for message in messages]


def text_of(content: Any) -> Any:
    return "".join(part["text"] for part in content) if isinstance(content, list) else content


async def test_javascript_sends_chat_completions_what_python_would_send(javascript: JavaScript) -> None:
    side = PythonSide(wired("chat", CHAT))
    state = (await side.run("hello", {})).to_state()
    js = to_javascript(state, side.agent)
    there = javascript(wired("chat", LAST_CHAT), state=json.dumps(js), decisions=BOTH)
    assert there["output"] == "over the wire"
    here = PythonSide(wired("chat", LAST_CHAT))
    state = await RunState.from_json(here.agent, state.to_json())
    decide(state, BOTH)
    await here.run(state)
    assert said(there["requests"][0]["messages"]) == said(here.log["requests"][0]["messages"])


async def test_python_sends_chat_completions_what_javascript_was_told(javascript: JavaScript) -> None:
    first = javascript(wired("chat", CHAT), input="hello", context={})
    side = PythonSide(wired("chat", LAST_CHAT))
    state = await from_javascript(first["state"], side.agent)
    text = first["state"]["generatedItems"][0]["rawItem"]["content"][0]
    assert text["providerData"]["reasoning_content"] == "thinking"
    assert state.to_json()["generated_items"][0]["raw_item"]["content"][0]["reasoning_content"] == "thinking"
    decide(state, BOTH)
    assert (await side.run(state)).final_output == "over the wire"
    here = PythonSide(wired("chat", CHAT, LAST_CHAT))
    whole = (await here.run("hello", {})).to_state()
    decide(whole, BOTH)
    await here.run(whole)
    assert said(side.log["requests"][0]["messages"]) == said(here.log["requests"][1]["messages"])
