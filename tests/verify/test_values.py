"""Values that fit a schema: judged by the jsonschema package."""

from typing import Any

import jsonschema
import pytest

from timestep.models.values import Values

NODE = {
    "type": "object",
    "properties": {"value": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["value", "next"],
}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}}},
        {"type": "string", "minLength": 40, "maxLength": 50},
        {"type": "string", "format": "uuid"},
        {"type": "integer", "minimum": 10, "maximum": 12},
        {"type": "number", "exclusiveMinimum": 100},
        {"type": "integer", "multipleOf": 7, "minimum": 1},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 3},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2},
        {"enum": [4, "four"]},
        {"const": {"a": 1}},
        {"oneOf": [{"type": "null"}, {"type": "integer"}]},
        {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}]},
        {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    ],
)
def test_a_value_fits_its_schema(schema: dict[str, Any]) -> None:
    jsonschema.validate(Values("Anna has 3 cats").fit(schema), schema)


def test_values_come_out_of_the_text_in_its_order() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "city": {"type": "string"},
            "age": {"type": "integer"},
            "height": {"type": "number"},
            "unit": {"enum": ["feet", "metres"]},
        },
    }
    found = Values("Take 'Anna' from \"Rome\", who is 31, and 1.75 metres tall").fit(schema)
    assert found == {"name": "Anna", "city": "Rome", "age": 31, "height": 1.75, "unit": "metres"}


def test_a_list_takes_all_numbers() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    assert Values("Sum 3, 5 and 8").fit(schema) == [3, 5, 8]
