"""A JSON value that fits a schema, made of what a text says. Knows no model; equal texts give equal values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from timestep.errors import UsageError

Schema = Mapping[str, Any]

MAX_DEPTH = 6  # below it a value gets only what its schema requires
_CHARACTERS = 128  # of a text that count as one value more
_SEARCHED = 400  # characters that a pattern is looked for in
_DIGITS = 15  # of the longest number that is one
_REPEATS = 3  # in a pattern that is looked for: more of them may take for ever, and so may a repeated group

_QUOTED = re.compile(r"(?<!\w)'([^'\n]+)'(?!\w)|\"([^\"\n]+)\"|“([^”\n]+)”|`([^`\n]+)`")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_NAME = re.compile(r"(?<=[a-z,:] )[A-Z][\w'-]*(?:,? [A-Z][\w'-]*)*")
_FORMATS = {
    "date": "2025-01-31",
    "time": "12:00:00Z",
    "date-time": "2025-01-31T12:00:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class Values:
    """What ``text`` offers, handed out in its order: numbers, quotations, names. The last of a kind is repeated."""

    def __init__(self, text: str, most: int = 4096) -> None:
        """``most``: values that are made at all, those in lists and objects counted; long texts count as several."""
        self.text, self._left = text, most
        self._text = text.strip()
        self._numbers = [number for number in _NUMBER.findall(text) if len(number) <= _DIGITS]
        self._quoted = ["".join(groups) for groups in _QUOTED.findall(text)]
        self._names = _NAME.findall(_QUOTED.sub(" ", text))

    @property
    def quoted(self) -> list[str]:
        """What stands in quotation marks and wasn't handed out yet."""
        return list(self._quoted)

    def fit(self, schema: Any, what: str = "The schema") -> Any:
        """A value of ``schema`` (JSON schema; ``$ref`` within it). UsageError: there is none; ``what`` it is of."""
        try:
            return self._fit(schema, schema, 0)
        except (re.error, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise UsageError(f"{what}: no value can be made of its JSON schema: {error}") from None

    def _spend(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise ValueError("it is larger than the context")

    def _fit(self, schema: Any, root: Any, depth: int) -> Any:
        self._spend(1)
        schema = _resolved(schema, root)
        if depth > 4 * MAX_DEPTH:  # it requires itself: nothing fits
            return None
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choice(schema["enum"])
        for several in ("anyOf", "oneOf"):
            if schema.get(several):
                option = _option(schema[several], root, last=depth >= MAX_DEPTH)
                return self._fit({**_without(schema, several), **option}, root, depth)
        match _kind(schema):
            case "object":
                return self._object(schema, root, depth)
            case "array":
                return self._array(schema, root, depth)
            case "integer":
                return int(self._number(schema, whole=True))
            case "number":
                return self._number(schema, whole=False)
            case "boolean":
                return True
            case "null":
                return None
        return self._string(schema)

    def _object(self, schema: Schema, root: Any, depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        names = required if required or depth >= MAX_DEPTH else properties
        return {name: self._fit(properties.get(name, {}), root, depth + 1) for name in names}

    def _array(self, schema: Schema, root: Any, depth: int) -> list[Any]:
        if schema.get("prefixItems"):
            return [self._fit(part, root, depth + 1) for part in schema["prefixItems"]]
        items = schema.get("items")
        items = items if isinstance(items, Mapping) else {}
        least = int(schema.get("minItems", 0))
        wanted = max(least, 0 if depth >= MAX_DEPTH else 1)
        if _kind(_resolved(items, root)) in ("integer", "number"):  # a list takes all numbers there are
            wanted = max(wanted, len(self._numbers))
        wanted = max(least, min(wanted, int(schema.get("maxItems", wanted))))
        return [self._fit(items, root, depth + 1) for _ in range(wanted)]

    def _choice(self, options: Sequence[Any]) -> Any:
        text = self._text.lower()
        return next((option for option in options if str(option).lower() in text), options[0])

    def _number(self, schema: Schema, *, whole: bool) -> float | int:
        texts = [text for text in self._numbers if not (whole and "." in text)]
        value: float | int = 0
        if texts:
            if len(self._numbers) > 1:
                self._numbers.remove(texts[0])
            value = int(texts[0]) if "." not in texts[0] else float(texts[0])
        step = schema.get("multipleOf")
        low = schema.get("minimum", _beyond(schema.get("exclusiveMinimum"), 1))
        high = schema.get("maximum", _beyond(schema.get("exclusiveMaximum"), -1))
        value = value if low is None else max(value, low)
        value = value if high is None else min(value, high)
        return value if not step else -(-value // step) * step

    def _string(self, schema: Schema) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = self._take(self._quoted) or self._take(self._names) or self._text or "text"
        pattern = schema.get("pattern") or ""
        if pattern and len(re.findall(r"[*+{?]", pattern)) <= _REPEATS and not re.search(r"\)[*+{]", pattern):
            found = re.search(pattern.strip("^$"), self._text[:_SEARCHED])
            text = found[0] if found else text
        text, least = text[: int(schema.get("maxLength", len(text)))], int(schema.get("minLength", 0))
        self._spend(max(len(text), least) // _CHARACTERS)
        return text.ljust(least, "-")

    @staticmethod
    def _take(texts: list[str]) -> str | None:
        return (texts.pop(0) if len(texts) > 1 else texts[0]) if texts else None


def _resolved(schema: Any, root: Any) -> dict[str, Any]:
    """The schema with its reference followed and its ``allOf`` joined."""
    if not isinstance(schema, Mapping):
        return {}
    for _ in range(8):  # references to references
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            break
        target: Any = root
        for key in reference.removeprefix("#").strip("/").split("/"):
            target = target.get(key, {}) if key and isinstance(target, Mapping) else target
        schema = {**(target if isinstance(target, Mapping) else {}), **_without(schema, "$ref")}
    joined = _without(schema, "allOf")
    for part in schema.get("allOf") or ():
        own = _resolved(part, root)
        joined = {
            **joined,
            **own,
            "properties": {**joined.get("properties", {}), **own.get("properties", {})},
            "required": [*joined.get("required", ()), *own.get("required", ())],
        }
    return joined


def _kind(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(kind)


def _option(options: Sequence[Any], root: Any, *, last: bool) -> Mapping[str, Any]:
    """The first that is more than null; with ``last`` null, where it may be, so that the value ends."""
    known = [_resolved(option, root) for option in options]
    return next((option for option in known if (option.get("type") == "null") == last), known[0])


def _without(schema: Schema, key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _beyond(limit: float | None, step: int) -> float | None:
    return None if limit is None else limit + step
