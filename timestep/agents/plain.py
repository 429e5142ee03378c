"""Any value as JSON that everything here takes: PostgreSQL, UTF-8 files, Prefect, JavaScript. Nothing here raises."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python


class Said(str):
    """What a model reads of an object that a tool returned, as the SDK writes it; ``value`` is the object's JSON."""

    value: Any = None


def plain(value: Any) -> Any:
    """The value as JSON: objects by their fields, NaN and infinities as null; what has no JSON, as text."""
    if isinstance(value, Said):
        return value.value
    try:
        fields = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        return whole(to_jsonable_python(fields, by_alias=False, fallback=str, inf_nan_mode="null"))
    except Exception:
        return text(value)


def text(value: Any) -> str:
    """The value as text."""
    try:
        return _whole(str(value), nul=True)
    except Exception:  # an author's __str__
        return f"<{type(value).__name__}>"


def whole(value: Any, *, nul: bool = True) -> Any:
    """JSON whose texts are Unicode: half a surrogate pair, which no file takes, becomes a replacement character.

    So does NUL without ``nul``: PostgreSQL's text and JSONB don't take it.
    """
    if isinstance(value, str):
        return _whole(value, nul)
    if isinstance(value, dict):
        return {whole(key, nul=nul): whole(item, nul=nul) for key, item in value.items()}
    return [whole(item, nul=nul) for item in value] if isinstance(value, list) else value


def _whole(value: str, nul: bool) -> str:
    if not nul:
        value = value.replace("\0", "\ufffd")
    try:
        value.encode()
    except UnicodeEncodeError:
        # By way of UTF-16, where two halves that stand side by side are one character.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value
