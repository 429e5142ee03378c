"""Input items of the Responses API: checked, numbered, and said as chat messages."""

import json
import re
from typing import Any
from uuid import uuid4

from timestep.errors import NotSupportedError, ParameterError

Item = dict[str, Any]

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
ROLES = ("user", "assistant", "system", "developer")
_PARTS = ("input_text", "input_image", "output_text", "refusal", "text")
_PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}
_PREFIXES |= {"mcp_call": "mcp_"}


def is_id(value: Any) -> bool:
    """Whether an object can have that id."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def check_items(items: list[Item], name: str = "input") -> None:
    """Refuse items that no chat has a place for. ParameterError, NotSupportedError: which, and why."""
    for index, item in enumerate(items):
        if item.get("id") is not None and not is_id(item["id"]):
            raise ParameterError(f"{name}[{index}].id", "must be text of at most 128 letters, digits, '_', '-', '.'.")
        _check(f"{name}[{index}]", item)


def _check(where: str, item: Item) -> None:
    match kind_of(item):
        case "message":
            if item.get("role") not in ROLES:
                raise ParameterError(f"{where}.role", f"is none of {', '.join(ROLES)}.")
            _check_content(f"{where}.content", item.get("content"))
        case "function_call":
            _texts(where, item, "call_id", "name", "arguments")
        case "function_call_output":
            _texts(where, item, "call_id")
            _check_content(f"{where}.output", item.get("output"))
        case "mcp_call":
            _texts(where, item, "id", "name", "arguments")
            if item.get("output") is not None:
                _texts(where, item, "output")
        case "item_reference":
            _texts(where, item, "id")
        case "reasoning":
            for name in ("summary", "content"):
                _check_thoughts(f"{where}.{name}", item.get(name))
        case kind:
            raise NotSupportedError(f"{where}.type", f"is {json.dumps(kind)}, which is not supported.")


def _check_content(where: str, content: Any) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ParameterError(where, "must be text or a list of parts.")
    for index, part in enumerate(content):
        kind = part.get("type")
        if kind not in _PARTS:
            raise NotSupportedError(f"{where}[{index}].type", f"is {json.dumps(kind)}, which is not supported.")
        if kind in ("input_text", "output_text", "text") and not isinstance(part.get("text"), str):
            raise ParameterError(f"{where}[{index}].text", "must be text.")
        if kind == "refusal" and not isinstance(part.get("refusal"), str):
            raise ParameterError(f"{where}[{index}].refusal", "must be text.")
        if kind == "input_image" and not isinstance(part.get("image_url"), str):
            raise NotSupportedError(f"{where}[{index}]", "needs an 'image_url'; files are not supported as images.")


def _check_thoughts(where: str, parts: Any) -> None:
    if parts is None:
        return
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts
    ):
        raise ParameterError(where, "must be a list of parts with a text.")


def _texts(where: str, item: Item, *names: str) -> None:
    for name in names:
        if not isinstance(item.get(name), str):
            raise ParameterError(f"{where}.{name}", "must be text.")


def kind_of(item: Item) -> Any:
    """The item's type; what has only a role is a message."""
    return item.get("type") or ("message" if "role" in item else None)


def complete(given: str | list[Item]) -> list[Item]:
    """The items as they are kept and listed: each with its type, an id, and its content as parts."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return [_complete(item) for item in items]


def _complete(item: Item) -> Item:
    kind = kind_of(item)
    whole = {**item, "type": kind}
    whole["id"] = item.get("id") or f"{_PREFIXES.get(kind, 'item_')}{uuid4().hex}"
    if kind != "item_reference":
        whole["status"] = item.get("status") or "completed"
    if kind == "reasoning":
        whole.setdefault("summary", [])
    if kind == "message":
        assistant = item["role"] == "assistant"
        content = item["content"]
        parts = [{"type": "output_text" if assistant else "input_text", "text": content}]
        parts = parts if isinstance(content, str) else [dict(part) for part in content]
        whole["content"] = [_part(part, assistant) for part in parts]
    return whole


def _part(part: Item, assistant: bool) -> Item:
    kind = part["type"]
    if kind in ("text", "input_text", "output_text"):
        kind = "output_text" if assistant else "input_text"
    if kind == "output_text":
        return {"annotations": [], "logprobs": [], **part, "type": kind}
    return {"detail": "auto", **part} if kind == "input_image" else {**part, "type": kind}


def shortened(items: list[Item]) -> list[Item] | None:
    """Without the oldest quarter of what was said, for a context that is too short; None: nothing can go.

    What the system says stays, and so does the last item. A call and what came back go together.
    """
    kept = [item.get("role") in ("system", "developer") for item in items]
    old = [index for index, stays in enumerate(kept[:-1]) if not stays]
    if not old:
        return None
    gone = set(old[: -(-len(old) // 4)])
    calls = {items[index].get("call_id") for index in gone} - {None}
    rest = [item for index, item in enumerate(items) if index not in gone and item.get("call_id") not in calls]
    return rest or None


def messages(items: list[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The items as chat messages, behind the instructions. ParameterError: there is no way to say them."""
    from agents import UserError
    from agents.models.chatcmpl_converter import Converter

    system = [{"role": "system", "content": instructions}] if instructions else []
    try:
        return [*system, *(dict(message) for message in Converter.items_to_messages(plain_items(items)))]
    except UserError as error:
        raise ParameterError("input", f"can't be said as chat: {error}") from None
    except (TypeError, KeyError, AttributeError):  # of an item whose parts are not what their kinds have
        raise ParameterError(
            "input", "has an item that can't be said as chat. Look at the types of its parts."
        ) from None


def plain_items(items: list[Item]) -> list[Any]:
    """The items as the Agents SDK takes them."""
    return [said for item in items for said in _plain(item)]


def _plain(item: Item) -> list[Item]:
    """As the converter knows it: text alone where all is text, and a call that an agent made with what came back."""
    kind = kind_of(item)
    if kind == "mcp_call":
        call = {"type": "function_call", "call_id": item["id"], "name": item["name"], "arguments": item["arguments"]}
        output = {"type": "function_call_output", "call_id": item["id"], "output": item.get("output") or ""}
        return [call, output]
    if kind != "message":
        return [{**item, "type": kind}]
    if item["role"] == "assistant":
        return [complete([item])[0]]
    content = item["content"]
    if not isinstance(content, str) and all(part["type"] != "input_image" for part in content):
        content = "".join(part["text"] for part in content if "text" in part)
    return [{"role": item["role"], "content": content}]
