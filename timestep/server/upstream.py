"""Requests passed on to the model server or a provider's, byte for byte and unbuffered. Knows no model."""

import json
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import httpx
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from timestep.errors import NotFoundError, ParameterError, ServiceUnavailableError
from timestep.models.disconnect import ClientGone, unless_gone
from timestep.models.endpoints import Endpoint
from timestep.models.errors import error_body

# Hop by hop, or decided anew by this server (RFC 9110, section 7.6.1).
_DROPPED = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
_JSON = {"content-type": "application/json"}
_UNHURRIED: dict[str, Any] = {
    "timeout": httpx.Timeout(None, connect=5),  # a generation may take minutes
    "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
}


class Upstream:
    """The model server at ``url``, asked with the service's key. A request whose client leaves is dropped there too."""

    def __init__(self, url: str, service_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=self._url,
            **_UNHURRIED,
            headers=_bearer(service_key),
            verify=self._url.startswith("https"),
            trust_env=False,
        )
        # Made when first needed: its TLS context takes 20 ms.
        self._outside: httpx.AsyncClient | None = None

    async def send(self, request: Request) -> Response:
        """The model server's answer to ``request``. ServiceUnavailableError: it doesn't answer."""
        forwarded = self._client.build_request(
            request.method,
            # As the client spelled it: decoded here and there once more, it would be another path than was judged here.
            httpx.URL("/").copy_with(raw_path=request.scope["raw_path"]),
            content=await request.body(),
            headers=_JSON,  # nothing else is understood there, nor any query
        )
        return await self._answer(request, self._client, forwarded, "model server", self._url)

    async def ask(self, request: Request, endpoint: Endpoint, path: str, body: dict[str, Any]) -> Response:
        """A provider's answer to ``body``, POSTed for ``request`` with the key of ours that it asks for.

        Raises:
            ServiceUnavailableError: it doesn't answer.
        """
        client = self._client if endpoint.ours else self._client_outside()
        # Our client may not know any other encoding.
        headers = {**_JSON, **_bearer(endpoint.api_key), "accept-encoding": "identity"}
        content = json.dumps(body).encode()  # what is no JSON, as NaN, is for the provider to judge
        forwarded = client.build_request("POST", f"{endpoint.base_url}{path}", content=content, headers=headers)
        what = "model server" if endpoint.ours else "provider"
        return await self._answer(request, client, forwarded, what, endpoint.base_url)

    async def look(self, endpoint: Endpoint, path: str) -> Any:
        """A provider's answer to a question of our own, as JSON.

        Raises:
            ServiceUnavailableError: none within 3 seconds, or a refusal.
            ValueError: it is no JSON.
        """
        try:
            url, headers = f"{endpoint.base_url}{path}", _bearer(endpoint.api_key)
            found = await self._client_outside().get(url, headers=headers, timeout=3)
            found.raise_for_status()
        except httpx.HTTPError:
            raise ServiceUnavailableError("provider", endpoint.base_url) from None
        return found.json()

    async def _answer(
        self, request: Request, client: httpx.AsyncClient, forwarded: httpx.Request, what: str, url: str
    ) -> Response:
        try:
            response = await unless_gone(request, client.send(forwarded, stream=True))
        except ClientGone:
            return Response(status_code=499)
        except httpx.HTTPError:
            raise ServiceUnavailableError(what, url) from None
        headers = {name: value for name, value in response.headers.items() if name.lower() not in _DROPPED}
        # Closed in the background task: the body of a client that left at once is never begun, so can't close itself.
        done = BackgroundTask(response.aclose)
        return StreamingResponse(response.aiter_raw(), response.status_code, headers, background=done)

    async def get(self, path: str) -> httpx.Response:
        """The model server's whole answer to a question of our own. ServiceUnavailableError: none within 5 s."""
        try:
            return await self._client.get(path, timeout=5)
        except httpx.HTTPError:
            raise ServiceUnavailableError("model server", self._url) from None

    def _client_outside(self) -> httpx.AsyncClient:
        self._outside = self._outside or httpx.AsyncClient(**_UNHURRIED)
        return self._outside

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        if self._outside is not None:
            await self._outside.aclose()


class NoUpstream(Upstream):
    """In a service without a model server: there are the providers' models, and no others."""

    def __init__(self) -> None:
        super().__init__("http://nowhere.invalid")

    async def send(self, request: Request) -> Response:
        """Who names one of the service's own models is told that there is none."""
        name = request.path_params.get("model")
        if name is None:
            with suppress(ValueError, AttributeError, RecursionError):
                name = json.loads(await request.body()).get("model")
        if not isinstance(name, str):
            raise ParameterError("model", "is missing.")
        raise NotFoundError("model", name)

    async def get(self, path: str) -> httpx.Response:
        """As from a model server with no models."""
        _, of_models, name = path.partition("/v1/models")
        if name:
            return httpx.Response(404, json=error_body(NotFoundError("model", unquote(name.removeprefix("/")))))
        return httpx.Response(200, json={"object": "list", "data": []} if of_models else {})


def _bearer(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}
