"""Who asks: a bearer of one of our keys, the service itself, or, while nobody else can, anybody on this machine.

Keys are wanted from the first one on, and always where other machines reach the server. While none is, a browser is
the one caller that might be led here by somebody else: pages of other sites are refused, and so are names of this
machine that are not its own (DNS rebinding).
"""

import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Request

from timestep.database.models import KeyRow
from timestep.errors import AuthenticationError, NotFoundError, RateLimitError, TimestepError
from timestep.keys import Keys, Scope, hash_of
from timestep.models.guard import bearer, refuse_led
from timestep.server.records import Housekeeper
from timestep.server.security.refusal import refusal
from timestep.server.security.scopes import check, is_open, needed
from timestep.settings import Settings

REMEMBERED_SECONDS = 1.0  # by when a revoked key has ended
REMEMBERED_KEYS = 1000
EVERYTHING = frozenset(Scope)


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may: ``row`` is empty where no key was needed, or it was the service's own."""

    scopes: frozenset[Scope] = EVERYTHING
    row: KeyRow | None = None
    anybody: bool = False


class Gate:
    """Knows the callers by their keys; what the database said counts for a second."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own = settings.service_key.get_secret_value() if settings.service_key else ""
        self._known: OrderedDict[str, tuple[float, Caller]] = OrderedDict()
        self._free_until = 0.0

    async def caller(self, authorization: list[str], housekeeper: Housekeeper) -> Caller:
        """Who holds this key.

        Raises:
            AuthenticationError: no key where one is needed, or one that is unknown or revoked.
            ServiceUnavailableError: the database is away, and nobody else can tell.
        """
        key = bearer(authorization)
        if self._own and key is not None and hmac.compare_digest(key.encode(), self._own.encode()):
            return Caller()
        if await self._is_free(housekeeper):
            return Caller(anybody=True)
        if key is None:
            raise AuthenticationError(
                "An API key is needed: 'Authorization: Bearer KEY'. Make one: timestep keys create"
            )
        return await self._holder(key, housekeeper)

    async def _is_free(self, housekeeper: Housekeeper) -> bool:
        if not self._settings.is_private:
            return False
        if self._settings.database_url is None:  # nowhere could a key be
            return True
        if time.monotonic() >= self._free_until:
            asked = time.monotonic()
            if await Keys(await housekeeper.database()).wanted():
                return False
            self._free_until = asked + REMEMBERED_SECONDS
        return True

    async def _holder(self, key: str, housekeeper: Housekeeper) -> Caller:
        digest, now = hash_of(key), time.monotonic()
        until, caller = self._known.get(digest, (0.0, None))
        if caller is None or now >= until:
            self._known.pop(digest, None)
            row = await Keys(await housekeeper.database()).find(key)
            if row is None:
                raise AuthenticationError("This API key is unknown, or was revoked. See: timestep keys list")
            caller = Caller(frozenset(Scope(scope) for scope in row.scopes), row)
            self._known[digest] = (now + REMEMBERED_SECONDS, caller)
            while len(self._known) > REMEMBERED_KEYS:
                self._known.popitem(last=False)
        return caller


class Authenticated:
    """ASGI middleware: no request passes whose caller may not make it, or makes too many."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings, self._gate = app, settings, Gate(settings)

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller in ``request.state.caller``, or answer why not."""
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._admit(scope)
            limits = await self._spend(scope, caller)
        except TimestepError as error:
            await refusal(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(limits)
            await send(message)

        await self._app(scope, receive, told if limits else send)

    async def _admit(self, scope: Request) -> Caller:
        headers, housekeeper = Headers(scope=scope), scope["app"].state.housekeeper
        caller = await self._gate.caller(headers.getlist("authorization"), housekeeper)
        if caller.anybody:
            _refuse_led(headers, self._settings.origins)
        what = f"{scope['method']} {scope['path']}"
        wanted = needed(scope["method"], scope["path"])
        if not wanted and not _exists(scope):
            raise NotFoundError("route", what)
        check(caller.scopes, wanted, what)
        return caller

    async def _spend(self, scope: Request, caller: Caller) -> dict[str, str]:
        """The headers that say what is left of the key's requests. RateLimitError: nothing."""
        if caller.row is None:
            return {}
        per_minute = caller.row.requests_per_minute or self._settings.requests_per_minute
        if not per_minute:
            return {}
        left = await Keys(await scope["app"].state.housekeeper.database()).spend(caller.row.id, per_minute)
        if left < 0:
            raise RateLimitError(
                f"This API key makes more than {per_minute} requests a minute.", -left * 60 / per_minute
            )
        return {
            "x-ratelimit-limit-requests": str(per_minute),
            "x-ratelimit-remaining-requests": str(int(left)),
            "x-ratelimit-reset-requests": f"{(per_minute - left) * 60 / per_minute:.3f}s",
        }


def _refuse_led(headers: Headers, origins: list[str]) -> None:
    """PermissionDeniedError: a browser asks, and somebody else's page had it do so."""
    origin = headers.get("origin")
    if origin not in origins:
        key, site = ", or make a key: timestep keys create", f" Let them: TIMESTEP_ORIGINS={origin}"
        refuse_led(headers, host_advice=key, origin_advice=site)


def _exists(scope: Request) -> bool:
    return any(route.matches(dict(scope))[0] is not Match.NONE for route in scope["app"].router.routes)
