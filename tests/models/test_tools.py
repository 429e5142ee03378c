"""Grammars hold any model to any schema: a model of random weights writes nothing but valid calls."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from timestep.errors import NotFoundError, UsageError
from timestep.models.engine import LlamaEngine
from timestep.models.tools import chosen_tools, format_grammar

USER = [{"role": "user", "content": "x"}]
SCHEMAS: dict[str, dict[str, Any]] = {
    "none": {},
    "empty": {"type": "object", "properties": {}, "additionalProperties": False},
    "scalars": {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}, "nothing": {"type": "null"}},
        "required": ["n", "ok", "nothing"],
    },
    "annotated": {
        "title": "Arguments",
        "type": "object",
        "properties": {"title": {"title": "Title", "description": "d", "enum": ["a", "b"]}, "any": {"title": "Any"}},
        "required": ["title"],
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    },
    "odd names": {
        "type": "object",
        "properties": {
            "_x": {"type": "boolean"},
            "2é": {"type": "boolean"},
            "char": {"const": "c"},
            "a b": {"const": 1},
        },
        "required": ["_x", "2é", "char", "a b"],
    },
    "nested": {
        "$defs": {"Point": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}},
        "type": "object",
        "properties": {
            "points": {"type": "array", "items": {"$ref": "#/$defs/Point"}, "minItems": 1, "maxItems": 2},
            "maybe": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]},
        },
        "required": ["points", "maybe"],
    },
    "text": {
        "type": "object",
        "properties": {"s": {"type": "string", "maxLength": 8}, "day": {"type": "string", "format": "date"}},
        "required": ["s", "day"],
    },
}


@pytest.fixture(scope="module")
def random_model(tiny_file: Path) -> LlamaEngine:
    return LlamaEngine(tiny_file, 1024, 1)


def tool(schema: dict[str, Any], name: str = "act") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_required_call_is_valid(name: str, random_model: LlamaEngine) -> None:
    tools = [tool(SCHEMAS[name], f"act-{name.replace(' ', '_')}"), tool(SCHEMAS["nested"], "other")]
    for seed in range(2):
        chosen = {"type": "function", "function": {"name": tools[0]["function"]["name"]}}
        generation = random_model.stream(
            USER, tools, tool_choice=chosen, seed=seed, parallel_tool_calls=False, max_tokens=120
        )
        list(generation)
        if generation.finish_reason == "length":  # random text does not always find the end of a string
            continue
        (call,) = generation.message.tool_calls
        assert call.name == chosen["function"]["name"]  # type: ignore[index]
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[name])
        assert call.arguments == json.dumps(json.loads(call.arguments), ensure_ascii=False) or "\\u" in call.arguments


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name != "none"])
def test_a_response_format_is_held(name: str, random_model: LlamaEngine) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[name]}}
    generation = random_model.stream(USER, response_format=response_format, seed=1, max_tokens=120)
    list(generation)
    assert generation.forced
    if generation.finish_reason == "stop":
        jsonschema.validate(json.loads(generation.message.content or ""), SCHEMAS[name])


def test_parallel_calls_have_an_end(random_model: LlamaEngine) -> None:
    generation = random_model.stream(USER, [tool(SCHEMAS["empty"])], tool_choice="required", seed=2, max_tokens=600)
    list(generation)
    assert generation.finish_reason == "tool_calls"
    assert 1 <= len(generation.message.tool_calls) <= 8
    assert len({call.id for call in generation.message.tool_calls}) == len(generation.message.tool_calls)


def test_a_choice_that_can_not_be_meant_is_refused() -> None:
    tools = [tool({}, "calculator")]
    with pytest.raises(NotFoundError, match=r"No tool 'calculater'. Did you mean 'calculator'"):
        chosen_tools(tools, {"type": "function", "function": {"name": "calculater"}})
    with pytest.raises(UsageError, match="needs 'tools'"):
        chosen_tools([], "required")
    with pytest.raises(UsageError, match="none of: auto"):
        chosen_tools(tools, "sometimes")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "object", "properties": {"x": {"$ref": "#/nowhere"}}}, "Tool 'act'"),
        ({"type": "object", "properties": {"x": {"type": "decimal"}}}, "decimal"),
    ],
)
def test_a_schema_beyond_grammars_is_refused_by_name(schema: Any, why: str, random_model: LlamaEngine) -> None:
    with pytest.raises(UsageError, match=why):
        random_model.stream(USER, [tool(schema)], tool_choice="required")


def test_an_unknown_response_format_is_refused() -> None:
    assert format_grammar({"type": "text"}) is None
    with pytest.raises(UsageError, match="'xml' is none of"):
        format_grammar({"type": "xml"})
    with pytest.raises(UsageError, match=r"json_schema\.schema"):
        format_grammar({"type": "json_schema"})
