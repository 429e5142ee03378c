"""Grammars (GBNF) that hold a model to its tools' JSON schemas, or to a response format. Knows no model.

A grammar writes JSON exactly as the chat renderer does (', ' and ': ', no other space), so that the next prompt
repeats the tokens that were generated.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from timestep.errors import NotFoundError, UsageError
from timestep.models.chat import CALL_CLOSE, CALL_OPEN
from timestep.models.schemas import LARGEST_GRAMMAR, schema_rules

Tool = Mapping[str, Any]

MAX_CALLS = 8  # in one turn: a small model may repeat itself without end
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id"}
_ANYTHING = {"type": ["object", "array", "string", "number", "boolean", "null"]}
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z0-9-]+')
_CHAR = r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'


def chosen_tools(tools: Sequence[Tool], choice: str | Mapping[str, Any]) -> tuple[list[Tool], bool]:
    """The tools a request lets the model call, and whether it must. NotFoundError, UsageError: a bad choice."""
    if choice == "none":
        return [], False
    if choice == "auto":
        return list(tools), False
    if not tools:
        raise UsageError(f"tool_choice {json.dumps(choice)} needs 'tools', and the request has none.")
    if choice == "required":
        return list(tools), True
    match choice:
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return [_named(tools, name)], True
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as allowed},
        }:
            return [_named(tools, _name(tool)) for tool in allowed], mode == "required"
    kinds = "auto, none, required, a function by name, allowed_tools"
    raise UsageError(f"tool_choice {json.dumps(choice)} is none of: {kinds}.")


def _named(tools: Sequence[Tool], name: str) -> Tool:
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool
    raise NotFoundError("tool", name, [tool["function"]["name"] for tool in tools])


def _name(tool: Any) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    raise UsageError(f"tool_choice allows {json.dumps(tool)}, which is no function by name.")


def calls_grammar(tools: Sequence[Tool], *, parallel: bool, opened: bool = False) -> str:
    """Grammar of one or more calls; ``opened``: the model has already written the first ``<tool_call>``."""
    rules, calls = [], []
    tail, again = _literal("}\n" + CALL_CLOSE), _literal("\n" + CALL_OPEN)
    for index, tool in enumerate(tools):
        function = tool["function"]
        what = f"Tool '{function['name']}'"
        rules += _schema_rules(function.get("parameters") or {"type": "object", "properties": {}}, f"t{index}-", what)
        if sum(map(len, rules)) > LARGEST_GRAMMAR:
            raise UsageError(f"'tools' have JSON schemas whose grammar is too large, up to {what} already.")
        head = _literal(f'\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": ')
        calls.append(f"{head} t{index}-root {tail}")
    more = f" ({again} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    first = "" if opened else _literal(CALL_OPEN) + " "
    return "\n".join([f"root ::= {first}call{more}", f"call ::= {' | '.join(calls)}", *rules])


def format_grammar(response_format: Mapping[str, Any] | None) -> str | None:
    """Grammar of OpenAI's ``response_format``; None for text. UsageError: an unknown type or a schema beyond GBNF."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            schema: Any = {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            pass
        case {"type": "json_schema"}:
            raise UsageError("response_format 'json_schema' needs the schema as 'json_schema.schema'.")
        case _:
            kind = response_format.get("type")
            raise UsageError(f"response_format '{kind}' is none of: text, json_object, json_schema.")
    return "\n".join(["root ::= r-root", *_schema_rules(schema, "r-", "response_format")])


def either(calls: str, answer: str) -> str:
    """Grammar of a turn that is either calls or an answer: both grammars, their roots renamed."""
    roots = [text.replace("root ::=", f"{name} ::=", 1) for name, text in (("calls", calls), ("answer", answer))]
    return "\n".join(["root ::= calls | answer", *roots])


def _schema_rules(schema: Mapping[str, Any], prefix: str, what: str) -> list[str]:
    """The schema's rules, every rule's name under ``prefix``; the first to use is ``<prefix>root``."""
    try:
        bare = _bare(schema)
    except (AttributeError, RecursionError) as error:
        raise UsageError(f"{what}: its JSON schema can't be read: {error}") from None
    rules = []
    for name, rule in schema_rules(bare, what).items():
        rule = {"space": '""', "char": _CHAR}.get(name, rule)
        rule = rule.replace('"," space', '", "').replace('":" space', '": "')
        rules.append(f"{prefix}{name} ::= {_TOKEN.sub(lambda part: _prefixed(part[0], prefix), rule)}")
    return rules


def _prefixed(part: str, prefix: str) -> str:
    return part if part[0] in '"[' else prefix + part


def _bare(schema: Any) -> Any:
    """The schema without its annotations; where nothing is left to hold, any JSON value."""
    if isinstance(schema, list):
        return [_bare(part) for part in schema]
    if schema is True:
        return _ANYTHING
    if not isinstance(schema, Mapping):
        return schema
    bare: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions"):
            bare[key] = {name: _bare(part) for name, part in value.items()}
        elif key in ("items", "prefixItems", "anyOf", "oneOf", "allOf"):
            bare[key] = _bare(value)
        elif key == "additionalProperties":
            bare[key] = _bare(value) if isinstance(value, Mapping) else value
        elif key not in _ANNOTATIONS:
            bare[key] = value
    return bare or _ANYTHING


def _literal(text: str) -> str:
    """``text`` as a GBNF literal: JSON's escapes are GBNF's too."""
    return json.dumps(text, ensure_ascii=False)
