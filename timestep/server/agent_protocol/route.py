"""Errors as the Agent Protocol has them: 422 for what can't be meant, and ``message`` beside OpenAI's ``error``."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from timestep.errors import TimestepError
from timestep.models.errors import error_body, error_headers, invalid_body
from timestep.server.agent_protocol.shapes import NotFound, Unprocessable

UNPROCESSABLE: dict[int | str, dict[str, Any]] = {
    422: {"model": Unprocessable, "description": "The request can't be meant."}
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": NotFound, "description": "No such task, step or artifact."}
}


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                body, status, headers = invalid_body(error), 422, {}
            except TimestepError as error:
                body, headers = error_body(error), error_headers(error)
                status = 422 if error.status == 400 else error.status
            return JSONResponse({"message": body["error"]["message"], **body}, status, headers)

        return answer


def protocol_router() -> APIRouter:
    """A router whose routes answer so; what can't be meant may be said of any."""
    return APIRouter(prefix="/ap/v1/agent/tasks", tags=["agent"], route_class=_Route, responses=UNPROCESSABLE)
