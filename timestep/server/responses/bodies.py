"""JSON bodies of requests that are judged by hand."""

import json
from typing import Any

from fastapi import Request

from timestep.errors import UsageError


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
