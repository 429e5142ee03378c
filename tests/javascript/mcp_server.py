"""An MCP server with one tool, for both languages' agents; each call is a line in the file that it is given."""

import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

server = MCPServer("ruler")


@server.tool()
def measure(thing: str) -> str:
    """How long a thing is."""
    with Path(sys.argv[1]).open("a") as log:
        log.write(f"{thing}\n")
    return f"{thing} is {len(thing)} long"


if __name__ == "__main__":
    server.run("stdio")
