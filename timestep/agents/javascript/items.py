"""Items of a conversation between the two SDKs: messages, function calls and results, reasoning.

The JavaScript SDK keeps what its protocol doesn't model in ``providerData``, and sends it along as the
provider's own fields; so whatever else a Python item has goes there and comes back from there. Values
(arguments, outputs, annotations) pass untouched: only the names of an item's own fields change.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from timestep.errors import StateTransferError

Item = dict[str, Any]
Refuse = Callable[[str, str], StateTransferError]

HOSTED_CALLS = ("file_search_call", "web_search_call", "image_generation_call", "code_interpreter_call", "mcp_call")
# Where the JavaScript SDK puts the output of a hosted call, when the provider's item has one.
_HOSTED_OUTPUTS = {"image_generation_call": "result", "mcp_call": "output"}
# Which model answered, noted by Python at an item; JavaScript would send it to the provider.
_LABELS = {"model", "response_id"}
_CALL = {"call_id": "callId", "name": "name", "arguments": "arguments", "id": "id", "status": "status"}
_COMPACTION = {"id": "id", "encrypted_content": "encrypted_content", "created_by": "created_by"}
# What JavaScript's own converter takes for data in a file's string.
_BASE64 = re.compile(r"[A-Za-z0-9+/=]+")


def to_javascript_item(item: Item, where: str, names: Mapping[str, str]) -> Item:
    """``names`` gives the function of each call id: a JavaScript result carries the name of its call."""
    kind = item.get("type") or "message"
    match kind:
        case "message":
            return _message_to_javascript(item, where)
        case "function_call":
            return _call_to_javascript(item, where)
        case "function_call_output":
            return _output_to_javascript(item, where, names)
        case "reasoning":
            return _reasoning_to_javascript(item, where)
        case "compaction":
            return {"type": kind, **_renamed(item, _COMPACTION, where, apart={"type"})}
        case _ if kind in HOSTED_CALLS or kind == "mcp_list_tools":
            return _hosted_to_javascript(item, where)
    raise refuse_javascript(where, f"is of type '{kind}', which is not translated")


def to_python_item(item: Item, where: str) -> Item:
    kind = item.get("type") or "message"
    match kind:
        case "message":
            return _message_to_python(item, where)
        case "function_call":
            return _call_to_python(item, where)
        case "function_call_result":
            return _output_to_python(item, where)
        case "reasoning":
            return _reasoning_to_python(item, where)
        case "compaction":
            known = {there: here for here, there in _COMPACTION.items()}
            return _with_provider_data({"type": kind}, item, known, where)
        case "hosted_tool_call" if item.get("name") in {*HOSTED_CALLS, "mcp_list_tools"}:
            return _hosted_to_python(item, where)
    name = f" ('{item['name']}')" if item.get("name") else ""
    raise refuse_python(where, f"is of type '{kind}'{name}, which is not translated")


def refuse_javascript(where: str, why: str) -> StateTransferError:
    return StateTransferError("JavaScript", where, why)


def refuse_python(where: str, why: str) -> StateTransferError:
    return StateTransferError("Python", where, why)


def call_names(items: Iterable[Item]) -> dict[str, str]:
    """The function that each call id of these Python items called."""
    return {item["call_id"]: item["name"] for item in items if item.get("type") == "function_call"}


# Messages


def _message_to_javascript(item: Item, where: str) -> Item:
    role, content = item.get("role"), item.get("content")
    if role not in {"user", "system", "assistant"}:
        raise refuse_javascript(where, f"has the role '{role}', which JavaScript's messages don't have")
    known = {"id": "id", "role": "role", "type": "type"}
    if role == "assistant":
        known |= {"status": "status", "phase": "phase"}
    message = _renamed(item, known, where, apart={"content"})
    if role == "assistant":
        parts = [{"type": "output_text", "text": content}] if isinstance(content, str) else content or []
        parts = [_output_part_to_javascript(part, f"{where}.content[{i}]") for i, part in enumerate(parts)]
        return {**message, "status": message.get("status", "completed"), "content": parts}
    if isinstance(content, str):
        return {**message, "content": content}
    if role == "system":
        raise refuse_javascript(f"{where}.content", "is a list, where a JavaScript system message is a string")
    return {**message, "content": [_input_part_to_javascript(p, f"{where}.content") for p in content or []]}


def _message_to_python(item: Item, where: str) -> Item:
    known = {"id": "id", "role": "role", "type": "type", "status": "status", "phase": "phase"}
    message = _with_provider_data({}, item, known, where, apart={"content"})
    content = item.get("content")
    if isinstance(content, str):
        return {**message, "content": content}
    if item.get("role") == "assistant":
        parts = [_output_part_to_python(p, f"{where}.content[{i}]") for i, p in enumerate(content or [])]
        return {"id": "", "type": "message", **message, "content": parts}
    return {**message, "content": [_input_part_to_python(p, f"{where}.content") for p in content or []]}


def _output_part_to_javascript(part: Item, where: str) -> Item:
    kind = part.get("type")
    if kind not in {"output_text", "refusal"}:
        raise refuse_javascript(where, f"is of type '{kind}', which is not translated")
    return _renamed(part, {"type": "type", "text": "text", "refusal": "refusal"}, where)


def _output_part_to_python(part: Item, where: str) -> Item:
    kind = part.get("type")
    if kind not in {"output_text", "refusal"}:
        raise refuse_python(where, f"is of type '{kind}', which is not translated")
    part = _without_copies(part, {"role", "content", "tool_calls"})
    made = _with_provider_data({}, part, {"type": "type", "text": "text", "refusal": "refusal"}, where)
    return {**made, "annotations": made.get("annotations") or []} if kind == "output_text" else made


def _input_part_to_javascript(part: Item, where: str) -> Item:
    kind = part.get("type")
    known = {"type": "type", "prompt_cache_breakpoint": "promptCacheBreakpoint"}
    if kind == "input_text":
        return _renamed(part, {**known, "text": "text"}, where)
    if kind == "input_image":
        made = _renamed(part, {**known, "detail": "detail"}, where, apart={"image_url", "file_id"})
        source = _only(part, ("image_url", "file_id"), where)
        return {**made, "image": part["image_url"] if source == "image_url" else {"id": part["file_id"]}}
    if kind == "input_file":
        keys = {"file_data": None, "file_url": "url", "file_id": "id"}
        made = _renamed(part, {**known, "filename": "filename"}, where, apart=set(keys))
        source = _only(part, tuple(keys), where)
        return {**made, "file": {keys[source]: part[source]} if keys[source] else part[source]}
    raise refuse_javascript(where, f"has a part of type '{kind}', which is not translated")


def _input_part_to_python(part: Item, where: str) -> Item:
    kind = part.get("type")
    known = {"type": "type", "promptCacheBreakpoint": "prompt_cache_breakpoint"}
    if kind == "input_text":
        return _with_provider_data({}, part, {**known, "text": "text"}, where)
    if kind == "input_image":
        made = _with_provider_data({}, part, {**known, "detail": "detail"}, where, apart={"image"})
        image = part.get("image")
        if isinstance(image, str):
            return {**made, "image_url": image}
        if isinstance(image, dict) and "id" in image:
            return {**made, "file_id": image["id"]}
    if kind == "input_file":
        made = _with_provider_data({}, part, {**known, "filename": "filename"}, where, apart={"file"})
        match part.get("file"):
            case {"id": str(file_id)}:
                return {**made, "file_id": file_id}
            case {"url": str(url)}:
                return {**made, "file_url": url}
            case str(data) if data.startswith("https://"):
                return {**made, "file_url": data}
            case str(data) if data.startswith("data:") or _BASE64.fullmatch(data):
                return {**made, "file_data": data}
    raise refuse_python(where, f"has a part of type '{kind}' in a form that is not translated")


# Calls of functions, their results, reasoning, calls that the provider made itself


def _call_to_javascript(item: Item, where: str) -> Item:
    _only_direct(item, where, refuse_javascript)
    return {"type": "function_call", **_renamed(item, _CALL, where, apart={"type", "caller"})}


def _call_to_python(item: Item, where: str) -> Item:
    _only_direct(item, where, refuse_python)
    known = {there: here for here, there in _CALL.items()}
    item = _without_copies(item, {"type", "function"})
    return _with_provider_data({"type": "function_call"}, item, known, where, apart={"caller"})


def _output_to_javascript(item: Item, where: str, names: Mapping[str, str]) -> Item:
    _only_direct(item, where, refuse_javascript)
    call_id, output = item.get("call_id", ""), item.get("output")
    if call_id not in names:
        raise refuse_javascript(where, f"is the result of the call '{call_id}', which is not in this state")
    known = {"call_id": "callId", "id": "id", "status": "status"}
    result = {
        "type": "function_call_result",
        "name": names[call_id],
        "status": "completed",
        **_renamed(item, known, where, apart={"type", "output", "caller"}),
    }
    if isinstance(output, str):
        return {**result, "output": {"type": "text", "text": output}}
    parts = [_input_part_to_javascript(p, f"{where}.output") for p in output or []]
    return {**result, "output": parts}


def _output_to_python(item: Item, where: str) -> Item:
    _only_direct(item, where, refuse_python)
    known = {"callId": "call_id", "id": "id"}
    result = _with_provider_data(
        {"type": "function_call_output"}, item, known, where, apart={"output", "name", "status", "caller"}
    )
    extra = result.keys() - {"type", "call_id", "id", "name", "status"}
    if extra:
        raise refuse_python(f"{where}.providerData", f"has {_quoted(extra)}, for which a Python result has no place")
    result = {key: result[key] for key in ("type", "call_id", "id") if key in result}
    # Python writes no status for a completed result.
    if item.get("status", "completed") != "completed":
        result["status"] = item["status"]
    match item.get("output"):
        case str(text) | {"type": "text", "text": str(text)}:
            return {**result, "output": text}
        case list(parts):
            return {**result, "output": [_input_part_to_python(part, f"{where}.output") for part in parts]}
        case other:
            kind = other.get("type") if isinstance(other, dict) else type(other).__name__
            raise refuse_python(f"{where}.output", f"is of type '{kind}', which is not translated")


def _reasoning_to_javascript(item: Item, where: str) -> Item:
    # The raw reasoning stays in providerData, from where JavaScript sends it along.
    made = _renamed(item, {"type": "type", "id": "id"}, where, apart={"summary"})
    parts = [{"type": "input_text", **_renamed(part, {"text": "text"}, f"{where}.summary")} for part in item["summary"]]
    return {**made, "content": parts}


def _reasoning_to_python(item: Item, where: str) -> Item:
    made = _with_provider_data({}, item, {"type": "type", "id": "id"}, where, apart={"content", "rawContent"})
    if not made.get("id"):
        raise refuse_python(where, "is reasoning without an id, which Python's reasoning needs")
    made["summary"] = [
        {"type": "summary_text", **_with_provider_data({}, part, {"text": "text"}, f"{where}.content", apart={"type"})}
        for part in item.get("content", [])
    ]
    if item.get("rawContent") and "content" not in made:
        made["content"] = [{"type": part["type"], "text": part["text"]} for part in item["rawContent"]]
    return made


def _hosted_to_javascript(item: Item, where: str) -> Item:
    _only_direct(item, where, refuse_javascript)
    kind = item["type"]
    output = item.get(_HOSTED_OUTPUTS.get(kind, ""))
    apart = {"status", "caller", *([_HOSTED_OUTPUTS[kind]] if output is not None else [])}
    call = {"type": "hosted_tool_call", "id": item.get("id"), "name": kind, "status": item.get("status", "completed")}
    data = {key: value for key, value in item.items() if key not in apart}
    return {**call, **({"output": output} if output is not None else {}), "providerData": data}


def _hosted_to_python(item: Item, where: str) -> Item:
    _only_direct(item, where, refuse_python)
    kind = item["name"]
    made = {**(item.get("providerData") or {}), "type": kind, "id": item.get("id")}
    if kind not in {"mcp_call", "mcp_list_tools"}:
        made["status"] = item.get("status")
    if item.get("output") is not None:
        if kind not in _HOSTED_OUTPUTS:
            raise refuse_python(f"{where}.output", f"has an output, which a Python {kind} has no place for")
        made[_HOSTED_OUTPUTS[kind]] = item["output"]
    return made


# Fields


def _renamed(item: Item, known: Mapping[str, str], where: str, apart: Iterable[str] = ()) -> Item:
    """``item``'s known fields under JavaScript's names, and every other one in ``providerData``."""
    if item.get("namespace"):
        raise refuse_javascript(
            where, f"is in the namespace '{item['namespace']}': only plain functions are translated"
        )
    made = {there: item[here] for here, there in known.items() if item.get(here) is not None}
    left = {key: value for key, value in item.items() if key not in known and key not in apart and value is not None}
    more = (left.pop("provider_data", None) or {}).keys() - _LABELS
    if more:
        raise refuse_javascript(f"{where}.provider_data", f"has {_quoted(more)}, which only Python's own models read")
    for key in ("annotations", "logprobs"):
        if left.get(key) == []:
            del left[key]
    return {**made, "providerData": left} if left else made


def _with_provider_data(
    start: Item, item: Item, known: Mapping[str, str], where: str, apart: Iterable[str] = ()
) -> Item:
    """``item``'s known fields under Python's names, with what ``providerData`` holds beside them."""
    if item.get("namespace"):
        raise refuse_python(where, f"is in the namespace '{item['namespace']}': only plain functions are translated")
    unknown = item.keys() - known.keys() - set(apart) - {"type", "providerData"}
    if unknown:
        raise refuse_python(where, f"has {_quoted(unknown)}, which is not translated")
    made = {**start, **{here: item[there] for there, here in known.items() if item.get(there) is not None}}
    for key, value in (item.get("providerData") or {}).items():
        # JavaScript's converter repeats an item's own id, type and phase here.
        if made.get(key, value) != value:
            raise refuse_python(f"{where}.providerData.{key}", "contradicts the item's own field")
        if value is not None:
            made[key] = value
    return made


def _without_copies(item: Item, keys: set[str]) -> Item:
    """``item`` without the message of the Chat Completions API that JavaScript took it from, but for what is new."""
    data = item.get("providerData") or {}
    return {**item, "providerData": {key: value for key, value in data.items() if key not in keys}}


def _only(part: Item, keys: tuple[str, ...], where: str) -> str:
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise refuse_javascript(where, f"has {_quoted(given) or 'none'} of {_quoted(keys)}, where exactly one is meant")
    return given[0]


def _only_direct(item: Item, where: str, refuse: Refuse) -> None:
    caller = item.get("caller")
    if caller and caller.get("type") != "direct":
        raise refuse(where, f"was called by a '{caller.get('type')}', which is not translated")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
