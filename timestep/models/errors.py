"""Errors over HTTP, in OpenAI's shape: one mapping for the model server and the public one."""

import logging
import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from timestep.errors import NotFoundError, NotSupportedError, ParameterError, RateLimitError, TimestepError

logger = logging.getLogger(__name__)


# Of a request, where a parameter may be; its name doesn't say it.
_PLACES = ("body", "query", "path", "header")


def error_body(error: Exception) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}``; a bug's text stays in the log."""
    if not isinstance(error, TimestepError):
        return _body("The server failed at this request; its log says why.", "server_error", code="internal_error")
    code = f"{error.kind}_not_found" if isinstance(error, NotFoundError) else error.code
    param = "model" if code == "model_not_found" else None
    if isinstance(error, NotSupportedError | ParameterError):
        param = error.param
    return _body(str(error), "invalid_request_error" if error.status < 500 else "server_error", param, code)


def invalid_body(error: RequestValidationError) -> dict[str, Any]:
    """The first of what FastAPI has found wrong with a request, by name.

    Where several kinds of a value would do, all that is wrong at the deepest place is said: the kind that fits best.
    """
    errors = error.errors()
    first, places = errors[0], [_parameter(one, error.body) for one in errors]
    within = [place for place in places if place == places[0] or place.startswith(f"{places[0]}.")]
    where = max(within, key=lambda place: place.count("."))
    if first["type"] == "json_invalid":
        return _body(f"The body is no JSON: {first['ctx']['error']}.", "invalid_request_error", code="invalid_request")
    if first["type"] == "extra_forbidden":
        return error_body(NotSupportedError(where))
    found = [one for one, place in zip(errors, places, strict=True) if place == where]
    reasons = [str(one["msg"]).removeprefix("Value error, ") for one in found]
    why = ", or: ".join(dict.fromkeys(reasons)) if where else reasons[0]
    message = f"'{where}': {why}" if where else why
    if not where and (named := re.match(r"'(\w+)'", why)):  # a rule of several parameters names the one it is about
        where = named[1]
    return _body(message, "invalid_request_error", where or None, "invalid_request")


def _parameter(found: dict[str, Any], body: Any) -> str:
    """Where in the request, as a client would write it: without pydantic's names for the kinds of a union."""
    place = list(found["loc"])
    if place[:1] != ["body"]:
        return ".".join(str(part) for part in (place[1:] if place and place[0] in _PLACES else place))
    parts, value = [], body
    for index, part in enumerate(place[1:], 2):
        try:
            value = value[part]
        except (LookupError, TypeError):
            if found["type"] != "missing" or index < len(place):
                continue  # the kind of a union, no part of the body
        parts.append(str(part))
    return ".".join(parts)


def error_headers(error: TimestepError) -> dict[str, str]:
    """When to come back, where the error says it (RFC 9110, section 10.2.3)."""
    return {"retry-after": str(max(1, math.ceil(error.retry_after)))} if isinstance(error, RateLimitError) else {}


def install_error_handlers(app: FastAPI) -> None:
    """Answer every failure of ``app`` in OpenAI's shape."""

    @app.exception_handler(TimestepError)
    async def _known(request: Request, error: TimestepError) -> JSONResponse:
        return JSONResponse(error_body(error), error.status, error_headers(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(invalid_body(error), 400)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        body = _body(message, "invalid_request_error", code="invalid_request")
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse(error_body(error), 500)


def _body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
