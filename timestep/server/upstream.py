"""Requests passed on to the model server, byte for byte and unbuffered. Knows no model."""

import httpx
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from timestep.errors import ServiceUnavailableError
from timestep.models.disconnect import ClientGone, unless_gone

# Hop by hop, or decided anew by this server (RFC 9110, section 7.6.1).
_DROPPED = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Upstream:
    """The model server at ``url``. A request whose client leaves is dropped there too."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=self._url,
            timeout=httpx.Timeout(None, connect=5),  # a generation may take minutes
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            verify=self._url.startswith("https"),
            trust_env=False,
        )

    async def send(self, request: Request) -> Response:
        """The model server's answer to ``request``. ServiceUnavailableError: it doesn't answer."""
        body = await request.body()
        forwarded = self._client.build_request(
            request.method,
            # As the client spelled it: decoded here and there once more, it would be another path than was judged here.
            httpx.URL("/").copy_with(raw_path=request.scope["raw_path"]),
            content=body,
            headers={"content-type": "application/json"},  # nothing else is understood there, nor any query
        )
        try:
            response = await unless_gone(request, self._client.send(forwarded, stream=True))
        except ClientGone:
            return Response(status_code=499)
        except httpx.HTTPError:
            raise ServiceUnavailableError("model server", self._url) from None
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

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
