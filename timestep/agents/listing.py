"""``python -m timestep.agents.listing``: the agents there are, as JSON on stdout.

For who must not import the agents files itself: they are programs of the user's.
"""

import json
import sys
from contextlib import redirect_stdout
from typing import Any

from timestep.agents.registry import AgentRegistry, load_registry
from timestep.errors import TimestepError
from timestep.models.errors import error_body
from timestep.settings import load_settings


def listing(registry: AgentRegistry) -> dict[str, Any]:
    """The default agent's name, and what is known of each without running it."""
    return {"default": registry.default, "agents": [_described(registry, name) for name in registry.names()]}


def _described(registry: AgentRegistry, name: str) -> dict[str, Any]:
    orchestrated = registry.orchestrated(name)
    known: dict[str, Any] = {"id": name, "base": registry.base(name)}
    if orchestrated is not None:
        model = orchestrated.model
        return known | {"kind": f"controlflow.{orchestrated.kind}", "model": model if isinstance(model, str) else None}
    agent = registry.get(name)
    return known | {
        "kind": "agent",
        "model": agent.model if isinstance(agent.model, str) else None,
        "instructions": agent.instructions if isinstance(agent.instructions, str) else None,
        "tools": [tool.name for tool in agent.tools],
        "handoffs": [getattr(one, "agent_name", None) or getattr(one, "name", "") for one in agent.handoffs],
    }


def main() -> None:
    """Print it. What the files print themselves goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            said = listing(load_registry(load_settings()))
    except TimestepError as error:
        said = error_body(error)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
