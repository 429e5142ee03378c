"""The agent of the step comparison: three model calls and two tool calls, none of which takes time."""

from agents import Agent, function_tool

from tests.scripted import PlannedModel


@function_tool
def note(text: str) -> str:
    """Say it back."""
    return text


quick = Agent(
    name="quick",
    tools=[note],
    model=PlannedModel([[("note", {"text": "one"})], [("note", {"text": "two"})], "done"]),
)
