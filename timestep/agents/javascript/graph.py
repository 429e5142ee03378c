"""The agents that a state speaks of, by name. The one place that looks into the SDK's agents for it."""

from collections.abc import Callable
from typing import Any

from agents import Agent, FunctionTool, Handoff
from agents._run_state_agent_identity import _iter_agent_graph

from timestep.errors import StateTransferError

Refuse = Callable[[str, str], StateTransferError]


def agents_by_name(agent: Agent[Any], refuse: Refuse) -> dict[str, Agent[Any]]:
    """All that can be reached by handoffs and as tools. The SDKs number agents of one name differently."""
    agents: dict[str, Agent[Any]] = {}
    for other in _iter_agent_graph(agent):
        if agents.setdefault(other.name, other) is not other:
            raise refuse("current_agent", f"is in a graph with two agents of the name '{other.name}'")
    return agents


def agent_behind(agent: Agent[Any], tool: str) -> Agent[Any] | None:
    """The agent that this tool of ``agent`` is (``Agent.as_tool``)."""
    for other in agent.tools:
        if isinstance(other, FunctionTool) and other.name == tool and isinstance(other._agent_instance, Agent):
            return other._agent_instance
    return None


def handoff_target(agent: Agent[Any], tool: str) -> str | None:
    """The name of the agent that this handoff leads to."""
    for other in agent.handoffs:
        if isinstance(other, Handoff):
            if other.tool_name == tool:
                return other.agent_name
        elif Handoff.default_tool_name(other) == tool:
            return other.name
    return None
