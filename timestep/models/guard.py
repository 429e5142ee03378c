"""Servers that this machine's own programs ask: a key of the service, and no browser that was led there.

While no key is wanted, a browser is the one caller that somebody else's page may have sent: such pages are refused,
and so are names of this machine that are not its own (DNS rebinding).
"""

import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from timestep.errors import AuthenticationError, PermissionDeniedError, TimestepError
from timestep.models.errors import error_body

OPEN = ("/health", "/ready")  # for whoever looks whether it runs


class Guarded:
    """ASGI middleware, websockets included: the service's key where there is one, else no page of another site.

    ``origins`` are sites whose pages may ask all the same.
    """

    def __init__(self, app: ASGIApp, service_key: SecretStr | None = None, origins: Sequence[str] = ()) -> None:
        self._app, self._key = app, service_key.get_secret_value() if service_key else ""
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer why not."""
        if scope["type"] in ("http", "websocket"):
            try:
                self._admit(scope)
            except TimestepError as error:
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._key and scope["path"] not in OPEN:
            key = bearer(headers.getlist("authorization"))
            if key is None or not hmac.compare_digest(key.encode(), self._key.encode()):
                raise AuthenticationError("This server is for the service itself, by its own key. Ask its HTTP API.")
            return
        if headers.get("origin") in self._origins:
            return
        address = (scope.get("server") or ("",))[0] or ""
        # Who reaches it from elsewhere may know it by any name.
        refuse_led(headers, any_name=not is_local(f"[{address}]" if ":" in address else address))


def bearer(authorization: Sequence[str]) -> str | None:
    """The key in the header, where there is one such header and it says Bearer (RFC 9110, section 11.4)."""
    if len(authorization) != 1:
        return None
    scheme, _, key = authorization[0].partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def refuse_led(headers: Headers, *, any_name: bool = False, host_advice: str = "", origin_advice: str = "") -> None:
    """PermissionDeniedError: a browser asks, and somebody else's page had it do so."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if not any_name and not is_local(host):
        why = f"The server was asked for as '{host}', which is no name of this machine alone."
        raise PermissionDeniedError(f"{why} Ask for it as 127.0.0.1 or localhost{host_advice}.")
    if origin is not None and urlsplit(origin).netloc != host:
        raise PermissionDeniedError(f"Pages of '{origin}' may not ask this server.{origin_advice}")


def is_local(host: str) -> bool:
    """Whether a ``Host`` can mean this machine only."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _refuse(error: TimestepError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":  # before it is accepted: the client gets 403
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    asks = {"www-authenticate": "Bearer"} if isinstance(error, AuthenticationError) else None
    await JSONResponse(error_body(error), error.status, asks)(scope, receive, send)
