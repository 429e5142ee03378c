"""A refusal before any route is reached: answered in the shape of every other error."""

from fastapi.responses import JSONResponse

from timestep.errors import AuthenticationError, TimestepError
from timestep.models.errors import error_body, error_headers


def refusal(error: TimestepError) -> JSONResponse:
    """The answer that says this error. A missing key is asked for (RFC 6750, section 3)."""
    asks = {"www-authenticate": "Bearer"} if isinstance(error, AuthenticationError) else {}
    return JSONResponse(error_body(error), error.status, {**error_headers(error), **asks})
