"""Who asks: a bearer of one of our keys, the service itself, or, while nobody else can, anybody on this machine.

Keys are wanted from the first one on, and always where other machines reach the server. While none is, a browser is
the one caller that might be led here by somebody else: pages of other sites are refused, and so are names of this
machine that are not its own (DNS rebinding).
"""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
REMEMBERED_KEYS = 1000  # of each kind: known and unknown
LOOKUPS = 4  # at the same time
LOOKUPS_WAITING = 200
EVERYTHING = frozenset(Scope)


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may: ``row`` is empty where no key was needed, or it was the service's own."""

    scopes: frozenset[Scope] = EVERYTHING
    row: KeyRow | None = None
    anybody: bool = False


NOBODY = Caller(frozenset())  # who holds a key that the database doesn't know
Remembered = OrderedDict[str, tuple[float, Caller]]  # by a key's hash, and until when


class Gate:
    """Knows the callers by their keys; what the database said counts for a second, also of keys that it doesn't know.

    Whoever makes keys up costs a lookup for each, so only so many are under way, and so many wait for their turn.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own = settings.service_key.get_secret_value() if settings.service_key else ""
        # Apart, so that those that are made up displace nobody's.
        self._known: Remembered = OrderedDict()
        self._unknown: Remembered = OrderedDict()
        self._free, self._free_until = False, 0.0
        self._turns, self._waiting = asyncio.Semaphore(LOOKUPS), 0

    async def caller(self, authorization: list[str], housekeeper: Housekeeper) -> Caller:
        """Who holds this key.

        Raises:
            AuthenticationError: no key where one is needed, or one that is unknown or revoked.
            RateLimitError: so many keys are being looked up that this one had no turn.
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
        caller = await self._holder(key, housekeeper)
        if caller is NOBODY:
            raise AuthenticationError("This API key is unknown, or was revoked. See: timestep keys list")
        return caller

    async def _is_free(self, housekeeper: Housekeeper) -> bool:
        if not self._settings.is_private:
            return False
        if self._settings.database_url is None:  # nowhere could a key be
            return True
        if time.monotonic() >= self._free_until:
            async with self._turn():
                if (asked := time.monotonic()) >= self._free_until:  # nobody asked meanwhile
                    self._free = not await Keys(await housekeeper.database()).wanted()
                    self._free_until = asked + REMEMBERED_SECONDS
        return self._free

    async def _holder(self, key: str, housekeeper: Housekeeper) -> Caller:
        digest = hash_of(key)
        if (caller := self._remembered(digest)) is not None:
            return caller
        async with self._turn():
            if (caller := self._remembered(digest)) is not None:  # another request has asked meanwhile
                return caller
            now, row = time.monotonic(), await Keys(await housekeeper.database()).find(key)
            caller = NOBODY if row is None else Caller(frozenset(Scope(scope) for scope in row.scopes), row)
            memory = self._unknown if row is None else self._known
            memory[digest] = (now + REMEMBERED_SECONDS, caller)
            while len(memory) > REMEMBERED_KEYS:
                memory.popitem(last=False)
            return caller

    def _remembered(self, digest: str) -> Caller | None:
        for memory in (self._known, self._unknown):
            until, caller = memory.get(digest, (0.0, NOBODY))
            if time.monotonic() < until:
                return caller
            memory.pop(digest, None)
        return None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._waiting >= LOOKUPS_WAITING:
            raise RateLimitError("Too many API keys are being looked up at the moment. Come back in a second.")
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


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
