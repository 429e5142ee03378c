"""The OpenAPI document: the errors that every route may answer, in OpenAI's shape, and what FastAPI gets wrong there.

A route says ``responses=ERRORS``, or ``responses=errors(404, 409)`` for those of its own: the app adds the rest.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

VERSION = "0.1.0"
DESCRIPTION = """Durable workflows for agents that think and learn.

`/v1` answers as OpenAI's API does: point any client of theirs at it. Objects that stand for work (steps, background
responses, batches, fine-tuning jobs) are views of Prefect flow runs and survive whatever dies. `/ap/v1` is the Agent
Protocol. Errors come in OpenAI's shape; a parameter that isn't implemented is refused by its name.
"""


class ErrorDetail(BaseModel):
    """What went wrong, in one line, and what it is about."""

    message: str
    type: str = Field(description="invalid_request_error or server_error.")
    param: str | None = Field(None, description="The parameter that is meant.")
    code: str | None = Field(None, description="The machine-readable kind.")


class ErrorBody(BaseModel):
    """An error, in OpenAI's shape."""

    error: ErrorDetail


_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def _documented(description: str, **more: Any) -> dict[str, Any]:
    return {"model": ErrorBody, "description": description, **more}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: _documented("A parameter that can't be meant, or that is not implemented; it is named."),
    401: _documented("No API key, or one that isn't known."),
    403: _documented("An API key whose scopes don't cover this, or a page of another site that asks."),
    404: _documented("No such object, model or agent."),
    408: _documented("The request's body stopped coming."),
    409: _documented("It conflicts with what is."),
    413: _documented("More bytes than are taken."),
    429: _documented("More requests than are taken now.", headers=_RETRY_AFTER),
    500: _documented("The server failed; its log says why."),
    503: _documented("A part of the service is away."),
    504: _documented("The answer was not ready in time."),
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented errors of these statuses."""
    return {status: ERRORS[status] for status in statuses}


# Before a route is reached, or whatever it does.
EVERYWHERE = errors(400, 401, 403, 408, 413, 429, 500, 503, 504)


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    """``openapi_extra`` of a route that parses its JSON body by hand."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def form_body(schema: dict[str, Any]) -> dict[str, Any]:
    """``openapi_extra`` of a route that takes a form."""
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of a route whose body is a ``model``, with all that it refers to written out."""
    schema = model.model_json_schema()
    return json_body(_inlined(schema, schema.pop("$defs", {})))


def install_openapi(app: FastAPI) -> None:
    """Have ``app.openapi()`` say what is true here: what can't be meant is 400, not FastAPI's 422; keys are bearers."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=VERSION, description=DESCRIPTION, routes=app.routes)
            app.openapi_schema = _corrected(document)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _corrected(document: dict[str, Any]) -> dict[str, Any]:
    for operations in document["paths"].values():
        for operation in operations.values():
            invalid = operation["responses"].get("422", {})
            if "HTTPValidationError" in str(invalid.get("content")):
                del operation["responses"]["422"]
    components = document.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(name, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    # Needed where the service has keys, which it tells by 401.
    document["security"] = [{"key": []}, {}]
    return document


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with what it refers to in its place: a document has no place for the definitions of a body."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(reference := schema.get("$ref"), str):
        return _inlined(definitions[reference.rpartition("/")[2]], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}
