"""From a JSON schema to the rules of a grammar (GBNF), within bounds: a schema of a few bytes can ask for gigabytes.

The conversion is llama-cpp-python's own, watched as it goes.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from llama_cpp.llama_grammar import SchemaConverter

from timestep.errors import UsageError

# Of one item, in a row: beyond it llama.cpp refuses a grammar, and far beyond it crashes.
MOST_REPETITIONS = 1000
# Of a schema, as JSON without its annotations, and of the rules that it makes, in characters.
LARGEST_SCHEMA, LARGEST_GRAMMAR = 128 << 10, 1 << 20
# Values of an 'enum', schemas of an 'anyOf': llama.cpp tries them all at each token.
MOST_CHOICES = 2000
# A rule is made again for each place that it is needed at: this is how often at most, which is half a second of work.
MOST_RULES = 100_000
_REPEATS = ("minItems", "maxItems", "minLength", "maxLength")
_CHOICES = ("enum", "anyOf", "oneOf")
_QUANTIFIER = re.compile(r"\{([^{}]*)\}")


def schema_rules(schema: Any, what: str) -> dict[str, str]:
    """The schema's rules by name; the first to use is ``root``. UsageError: which part of ``what`` no grammar holds."""
    try:
        text = json.dumps(schema)
        if len(text) > LARGEST_SCHEMA:
            raise _TooMuch(f"it has {len(text)} characters, and {LARGEST_SCHEMA} are taken.")
        converter = _Converter()
        converter.visit(converter.resolve_refs(json.loads(text), "schema"), "")
    except Exception as error:  # the converter's own: what it doesn't foresee is a schema that it can't convert
        said = error if isinstance(error, (_TooMuch, AssertionError, ValueError)) else type(error).__name__
        raise UsageError(f"{what}: its JSON schema can't be held by a grammar: {str(said)[:500]}") from None
    return converter.rules


class _TooMuch(Exception):  # noqa: N818 - never leaves this file
    """What a schema asks too much of."""


class _Converter(SchemaConverter):
    """Counts what it makes, and looks at what it is told to repeat before it does."""

    def __init__(self) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)  # type: ignore[no-untyped-call]
        self._made, self._size = 0, 0

    @property
    def rules(self) -> dict[str, str]:
        """Every rule by its name, in the order of the names."""
        return dict(sorted(self._rules.items()))

    def visit(self, schema: Any, name: str) -> Any:
        """The rule of ``schema``."""
        if isinstance(schema, Mapping):
            _check(schema)
        return super().visit(schema, name)  # type: ignore[no-untyped-call]

    def _add_rule(self, name: str, rule: str) -> Any:
        known = len(self._rules)
        key = super()._add_rule(name, rule)  # type: ignore[no-untyped-call]
        self._made += 1
        if len(self._rules) > known:
            self._size += len(key) + len(rule)
        if self._made > MOST_RULES or self._size > LARGEST_GRAMMAR:
            raise _TooMuch("it is too large. Take properties, choices, repetitions or depth out of it.")
        return key


def _check(schema: Mapping[str, Any]) -> None:
    """Refuse what asks for too many of something."""
    for name in _REPEATS:
        value = schema.get(name, 0)
        if isinstance(value, (int, float)) and value > MOST_REPETITIONS:
            raise _TooMuch(f"'{name}' is {str(value)[:50]}, and at most {MOST_REPETITIONS} can be held.")
    for name in _CHOICES:
        value = schema.get(name, ())
        if isinstance(value, list) and len(value) > MOST_CHOICES:
            raise _TooMuch(f"'{name}' has {len(value)} entries, and at most {MOST_CHOICES} can be held.")
    pattern = schema.get("pattern", "")
    for quantifier in _QUANTIFIER.findall(pattern) if isinstance(pattern, str) else ():
        for number in map(str.strip, quantifier.split(",")):
            if number[:1].isdigit() and int(number) > MOST_REPETITIONS:
                raise _TooMuch(f"'pattern' repeats {number[:50]} times, and at most {MOST_REPETITIONS} can be held.")
