"""The MCP servers of a step's agents: connected for as long as it runs, where their owner hasn't done it.

They are told a call's idempotency key in its ``_meta``, by the name of ``KEY``.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agents import Agent, FunctionTool, Handoff

from timestep.agents.tools import present_key

if TYPE_CHECKING:
    from agents.mcp import MCPServer

KEY = "timestep/idempotency-key"

logger = logging.getLogger(__name__)


@asynccontextmanager
async def connected(agent: Agent[Any]) -> AsyncIterator[None]:
    """Connects the servers of the agent, of those it hands off to and of those that serve it as tools."""
    opened: list[MCPServer] = []
    try:
        for server in _servers(agent, set()):
            _tell_keys(server)
            if getattr(server, "session", server) is None:
                opened.append(server)
                await server.connect()  # type: ignore[no-untyped-call]
        yield
    finally:
        for server in reversed(opened):
            try:
                await server.cleanup()  # type: ignore[no-untyped-call]
            except Exception:
                logger.warning("MCP server '%s' could not be closed", server.name, exc_info=True)


class _Keys:
    """What an author's own resolver says of a call, and the call's idempotency key."""

    def __init__(self, resolve: Any) -> None:
        self._resolve = resolve

    async def __call__(self, context: Any) -> dict[str, Any] | None:
        told = self._resolve(context) if self._resolve is not None else None
        told = await told if inspect.isawaitable(told) else told
        key = present_key()
        return told if key is None else {**(told or {}), KEY: key}


def _tell_keys(server: "MCPServer") -> None:
    """Once for each server, which may serve several steps; one that an author made may take no ``_meta``."""
    resolve = getattr(server, "tool_meta_resolver", None)
    if not isinstance(resolve, _Keys) and "meta" in inspect.signature(server.call_tool).parameters:
        server.tool_meta_resolver = _Keys(resolve)


def _servers(agent: Agent[Any], seen: set[int]) -> Iterator["MCPServer"]:
    if id(agent) in seen:
        return
    seen.add(id(agent))
    for server in agent.mcp_servers:
        if id(server) not in seen:
            seen.add(id(server))
            yield server
    handoffs = [target._agent_ref for target in agent.handoffs if isinstance(target, Handoff)]
    targets = [*(reference() for reference in handoffs if reference is not None), *agent.handoffs]
    nested = [tool._agent_instance for tool in agent.tools if isinstance(tool, FunctionTool)]
    for other in (*targets, *nested):
        if isinstance(other, Agent):
            yield from _servers(other, seen)
