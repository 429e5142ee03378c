"""JSON bodies of requests that are judged by hand: read, and documented."""

import json
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from timestep.errors import UsageError
from timestep.server.documented import inlined, json_body


async def json_object(request: Request) -> dict[str, Any]:
    """The request's body. UsageError: it is no JSON object."""
    try:
        body = json.loads(await request.body(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise UsageError("The body is no JSON object.")
    return body


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def schema_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """``openapi_extra`` of a route whose body is a ``model``, with all that it refers to written out."""
    schema = model.model_json_schema()
    return json_body(inlined(schema, schema.pop("$defs", {})), required=required)
