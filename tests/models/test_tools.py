"""Grammars hold any model to any schema: a model of random weights writes nothing but valid calls."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from timestep.errors import NotFoundError, UsageError
from timestep.models.engine import LlamaEngine
from timestep.models.tools import calls_grammar, chosen_tools, format_grammar

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


def branching(depth: int) -> dict[str, Any]:
    """A schema of a few lines that is 2**depth once it is written out."""
    nodes: dict[str, Any] = {"d0": {"properties": {"x": {"type": "null"}}}}
    for level in range(1, depth + 1):
        below = {"allOf": [{"$ref": f"#/$defs/d{level - 1}"}]}
        nodes[f"d{level}"] = {"properties": {"x": below, "y": below}}
    return {"$defs": nodes, "allOf": [{"$ref": f"#/$defs/d{depth}"}]}


def deep(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": deep(depth - 1)} if depth else {"type": "null"}


def wide(count: int, **schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": schema for number in range(count)}}


NASTY: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "items": {}, "minItems": 200_000}, "'minItems' is 200000"),
    ({"type": "array", "items": {"type": "string"}, "maxItems": 20_000}, "'maxItems'"),
    ({"type": "string", "maxLength": 10**8}, "'maxLength' is 100000000, and at most 1000"),
    ({"type": "string", "minLength": 1e300}, "'minLength'"),
    ({"type": "string", "pattern": "^(ab){100000}$"}, "'pattern' repeats 100000 times"),
    ({"type": "string", "pattern": "^a{0,1_000_000_000}$"}, "'pattern' repeats"),
    ({"type": "string", "pattern": "^*$"}, "can't be held"),
    ({"type": "string", "pattern": "^" + "(" * 5000 + "$"}, "can't be held"),
    ({"$ref": "#/$defs/../x", "$defs": {"..": {"x": {"type": "string", "maxLength": 10**8}}}}, "'maxLength'"),
    ({"type": "array", "items": {"type": "null"}, "minItems": "two"}, "can't be held"),
    ({"enum": [str(number) for number in range(5000)]}, "'enum' has 5000 entries"),
    ({"enum": ["x" * 200_000]}, "characters"),
    (wide(150, type="string", maxLength=1000), "too large"),
    (wide(700, type="null"), "too large"),
    (branching(40), "too large"),
    (deep(400), "can't be"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "can't be held"),
    ({"type": "object", "properties": ["a"]}, "can't be read"),
]


@pytest.mark.parametrize(("schema", "why"), NASTY)
def test_a_schema_that_asks_for_too_much_is_refused(schema: Any, why: str) -> None:
    for inner in (schema, {"type": "object", "properties": {"x": schema}} if "$defs" not in str(schema) else schema):
        with pytest.raises(UsageError, match=why):
            format_grammar({"type": "json_schema", "json_schema": {"schema": inner}})
        with pytest.raises(UsageError, match=f"Tool 'act'.*{why}"):
            calls_grammar([tool(inner)], parallel=False)


LARGE: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 10**30, "maximum": 10**40},
    {"type": "string", "minLength": 1, "maxLength": 1000},
    {"type": "array", "items": {"type": "number"}, "maxItems": 1000},
    {"type": "string", "pattern": "^a\nb[0-9]{1000}$"},
    {"enum": [str(number) for number in range(2000)]},
    {"type": "object", "properties": {"maxLength": {"const": 10**9}, "x": {"enum": [{"maxLength": 10**9}]}}},
    wide(20, type="string", maxLength=1000),
    wide(400, type="boolean"),
    deep(100),
]


@pytest.mark.parametrize("schema", LARGE)
def test_a_schema_at_the_bounds_is_held(schema: dict[str, Any], random_model: LlamaEngine) -> None:
    response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    generation = random_model.stream(USER, response_format=response_format, seed=1, max_tokens=3)
    list(generation)
    assert generation.forced


def test_many_tools_are_not_larger_than_one_may_be() -> None:
    tools = [tool(wide(20, type="string", maxLength=1000), f"act{number}") for number in range(20)]
    with pytest.raises(UsageError, match="'tools' have JSON schemas whose grammar is too large"):
        calls_grammar(tools, parallel=False)


def test_an_unknown_response_format_is_refused() -> None:
    assert format_grammar({"type": "text"}) is None
    with pytest.raises(UsageError, match="'xml' is none of"):
        format_grammar({"type": "xml"})
    with pytest.raises(UsageError, match=r"json_schema\.schema"):
        format_grammar({"type": "json_schema"})
