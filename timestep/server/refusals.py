"""What a route doesn't know is refused by name, rather than ignored."""

from fastapi import Request
from fastapi.routing import APIRoute

from timestep.errors import NotSupportedError


async def known_query(request: Request) -> None:
    """A router's dependency. NotSupportedError: the request's query has a parameter that its route doesn't declare."""
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params} if isinstance(route, APIRoute) else set()
    for name in request.query_params:
        if name not in known:
            raise NotSupportedError(name[:100])
