"""An MCP server over stdio with one tool, which logs its real calls: ``python mcp_server.py LOG``."""

import sys
from pathlib import Path

from mcp.server import MCPServer

from tests.scripted import append

server = MCPServer("notes")


@server.tool()
def note(text: str) -> str:
    """Write a note."""
    append(Path(sys.argv[1]), f"tool {text}")
    return f"noted {text}"


if __name__ == "__main__":
    server.run(transport="stdio")
