"""README and schema of a chart follow from its commented values."""

import json

import jsonschema
import pytest

from charts.documents import UndocumentedError, read, schema, tables, write
from tests.charts.rendering import CHART

VALUES = """\
# The file's head, no description.

# -- Name to use.
# @schema {"maxLength": 63}
name: ""
# -- The HTTP API.
api:
  # -- Pods of it;
  # more of them share the work.
  replicas: 2
  # -- Labels | annotations.
  # @schema {"additionalProperties": true}
  labels: {team: a}
  # -- A class.
  # @schema {"type": ["string", "null"]}
  className:
"""


def test_the_schema_has_types_of_defaults_and_what_comments_add() -> None:
    made = schema(read(VALUES))
    api = made["properties"]["api"]
    assert made["additionalProperties"] is False and api["additionalProperties"] is False
    assert made["properties"]["name"] == {"description": "Name to use.", "type": "string", "maxLength": 63}
    assert api["properties"]["replicas"] == {
        "description": "Pods of it; more of them share the work.",
        "type": "integer",
    }
    assert api["properties"]["labels"]["additionalProperties"] is True
    assert api["properties"]["className"]["type"] == ["string", "null"]
    jsonschema.Draft7Validator.check_schema(made)


@pytest.mark.parametrize(
    ("given", "path"),
    [({"nam": "x"}, []), ({"api": {"replica": 1}}, ["api"]), ({"api": {"replicas": "2"}}, ["api", "replicas"])],
)
def test_the_schema_refuses_unknown_keys_and_wrong_types(given: dict[str, object], path: list[str]) -> None:
    (error,) = jsonschema.Draft7Validator(schema(read(VALUES))).iter_errors(given)
    assert list(error.path) == path


def test_globals_of_a_parent_chart_pass() -> None:
    values = read("# -- G.\nglobal:\n  # -- R.\n  registry: ''\n")
    assert jsonschema.Draft7Validator(schema(values)).is_valid({"global": {"registry": "x", "theirs": 1}})
    assert not jsonschema.Draft7Validator(schema(values)).is_valid({"global": {"registry": 1}})


def test_free_maps_take_any_key() -> None:
    assert jsonschema.Draft7Validator(schema(read(VALUES))).is_valid({"api": {"labels": {"any": "thing"}}})


def test_the_tables_show_every_key_its_default_and_its_description() -> None:
    made = tables(read(VALUES))
    assert made.index('| `name` | `""` | Name to use. |') < made.index("### api\n\nThe HTTP API.")
    assert "| `api.replicas` | `2` | Pods of it; more of them share the work. |" in made
    assert '| `api.labels` | `{"team": "a"}` | Labels \\| annotations. |' in made
    assert "| `api.className` |  | A class. |" in made
    assert "api.labels.team" not in made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# -- A.\na: 1\nb: 2\n", "'b' has no description: write '# -- What it is.' above it."),
        ("# -- A.\na:\n  # Not one.\n  b: 2\n", "'a.b' has no description: write '# -- What it is.' above it."),
        ("# -- A.\na:\n", '\'a\' has no default: say its type, for example # @schema {"type": "string"}'),
        (
            "# -- A.\na: {}\n",
            "'a' is an empty map: say what it takes, for example # @schema {\"additionalProperties\": true}",
        ),
        ("# -- A.\n# @schema {type}\na: 1\n", "The @schema of 'a' is no JSON object: "),
    ],
)
def test_what_is_missing_is_said_with_the_key(text: str, message: str) -> None:
    with pytest.raises(UndocumentedError) as raised:
        read(text)
    assert str(raised.value).startswith(message)


def test_readme_and_schema_of_the_chart_are_up_to_date() -> None:
    for path, text in write(CHART).items():
        assert path.read_text() == text, (
            f"{path.name} is not what values.yaml says. Write it: python charts/documents.py"
        )


def test_the_readme_names_every_value() -> None:
    readme = (CHART / "README.md").read_text()
    for value in read((CHART / "values.yaml").read_text()):
        for row in value.rows():
            assert f"`{row.path}`" in readme or f"### {row.path}\n" in readme, row.path


def test_the_schema_is_one_of_draft_7() -> None:
    made = json.loads((CHART / "values.schema.json").read_text())
    assert made["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(made)
