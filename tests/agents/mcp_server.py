"""An MCP server over stdio with one tool, which logs its real calls and their keys: ``python mcp_server.py LOG``."""

import sys
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from tests.scripted import append

server = MCPServer("notes")


@server.tool()
def note(text: str, context: Context) -> str:
    """Write a note."""
    append(Path(sys.argv[1]), f"tool {text}")
    meta = dict(context.request_context.meta or {})
    append(Path(f"{sys.argv[1]}.keys"), f"{text} {meta.get('timestep/idempotency-key')} {meta.get('mine')}")
    return f"noted {text}"


if __name__ == "__main__":
    server.run(transport="stdio")
