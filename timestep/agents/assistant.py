"""The default agent: ``assistant``, on the local model, with a few safe tools."""

from typing import Any

from agents import Agent, ModelSettings

from timestep.agents.tools import StepContext, default_tools

INSTRUCTIONS = "You are a helpful assistant. Use a tool when it helps."


def assistant() -> Agent[Any]:
    """The agent that serves where a step names none; greedy, since a small model wanders otherwise."""
    return Agent[StepContext](
        name="assistant",
        instructions=INSTRUCTIONS,
        tools=list(default_tools()),
        model_settings=ModelSettings(temperature=0.0, max_tokens=256),
    )
