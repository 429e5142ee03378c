"""Writes a chart's README.md and values.schema.json from its commented values.yaml: `python charts/documents.py`.

Above each key stands `# -- What it is.`, which may go on over further comment lines. A line `# @schema {…}` is merged
into the key's JSON schema; a map that users fill freely carries `# @schema {"additionalProperties": true}`, every other
map takes the keys that stand there and no more. The types come from the defaults.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).with_name("timestep")
# Where README.md.in wants the tables.
PLACE = "<!-- values -->"
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


class UndocumentedError(Exception):
    """What is wrong with a key's comment."""


@dataclass
class Value:
    """One key of values.yaml."""

    path: str
    default: Any
    description: str
    extra: dict[str, Any]
    children: list["Value"] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def is_group(self) -> bool:
        """Whether it only holds other keys, each documented by itself."""
        return bool(self.children)

    def schema(self) -> dict[str, Any]:
        made: dict[str, Any] = {"description": self.description}
        if type(self.default) in _TYPES:
            made["type"] = _TYPES[type(self.default)]
        if self.is_group:
            made["properties"] = {child.name: child.schema() for child in self.children}
            # Helm hands the globals of a parent chart on, whatever they are.
            made["additionalProperties"] = self.path == "global"
        return made | self.extra

    def rows(self) -> Iterator["Value"]:
        """Itself and what it holds, in the order of the file."""
        yield self
        for child in self.children:
            yield from child.rows()


def read(text: str) -> list[Value]:
    """The keys of a values.yaml. UndocumentedError: one has no comment, or its type can't be known."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return _children(root, yaml.safe_load(text), "", text.splitlines())


def schema(values: list[Value]) -> dict[str, Any]:
    """The JSON schema of a chart's values: what isn't named is refused."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {value.name: value.schema() for value in values},
        "additionalProperties": False,
    }


def tables(values: list[Value]) -> str:
    """What each key is and its default: single keys first, then a section for each component."""
    single = [value for value in values if not value.is_group]
    parts = [_table(single)] if single else []
    parts += [
        f"### {group.name}\n\n{group.description}\n\n{_table(list(group.rows())[1:])}"
        for group in values
        if group.is_group
    ]
    return "\n\n".join(parts)


def write(chart: Path) -> dict[Path, str]:
    """The files that follow from ``chart``'s values.yaml, and their texts."""
    values = read((chart / "values.yaml").read_text())
    prose = (chart / "README.md.in").read_text()
    if PLACE not in prose:
        raise UndocumentedError(f"README.md.in has no line '{PLACE}' for the tables.")
    return {
        chart / "README.md": prose.replace(PLACE, tables(values)),
        chart / "values.schema.json": json.dumps(schema(values), indent=2, ensure_ascii=False) + "\n",
    }


def _children(node: yaml.MappingNode, defaults: dict[str, Any], parent: str, lines: list[str]) -> list[Value]:
    return [
        _value(key, node, defaults[key.value], f"{parent}{key.value}", lines)
        for key, node in node.value
        if isinstance(key, yaml.ScalarNode)
    ]


def _value(key: yaml.ScalarNode, node: yaml.Node, default: Any, path: str, lines: list[str]) -> Value:
    description, extra = _comment(lines, key.start_mark.line, path)
    value = Value(path, default, description, extra)
    free = extra.get("additionalProperties") is True
    if isinstance(node, yaml.MappingNode) and not free:
        if not default and "additionalProperties" not in extra and "properties" not in extra:
            raise UndocumentedError(
                f"'{path}' is an empty map: say what it takes, for example # @schema {{\"additionalProperties\": true}}"
            )
        value.children = _children(node, default, f"{path}.", lines)
    if default is None and not {"type", "enum", "anyOf", "oneOf"} & set(extra):
        raise UndocumentedError(f'\'{path}\' has no default: say its type, for example # @schema {{"type": "string"}}')
    return value


def _comment(lines: list[str], line: int, path: str) -> tuple[str, dict[str, Any]]:
    """The description and the schema in the comment above a line."""
    block: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        block.insert(0, lines[line].lstrip().removeprefix("#").strip())
    starts = [number for number, text in enumerate(block) if text.startswith("-- ")]
    if not starts:
        raise UndocumentedError(f"'{path}' has no description: write '# -- What it is.' above it.")
    words: list[str] = []
    extra: dict[str, Any] = {}
    for text in block[starts[-1] :]:
        if text.startswith("@schema "):
            try:
                extra |= json.loads(text.removeprefix("@schema "))
            except ValueError as error:
                raise UndocumentedError(f"The @schema of '{path}' is no JSON object: {error}") from error
        else:
            words.append(text.removeprefix("-- "))
    return " ".join(word for word in words if word), extra


def _table(values: list[Value]) -> str:
    rows = [f"| `{value.path}` | {_default(value)} | {_cell(value.description)} |" for value in values]
    return "\n".join(["| value | default | |", "|---|---|---|", *rows])


def _default(value: Value) -> str:
    if value.is_group or value.default is None:
        return ""
    return f"`{_cell(json.dumps(value.default, ensure_ascii=False))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write both files."""
    try:
        written = write(CHART)
    except UndocumentedError as error:
        sys.exit(f"{CHART.name}/values.yaml: {error}")
    for path, text in written.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
