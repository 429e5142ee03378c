"""Agents of the comparisons: three model calls and two tool calls, none of which takes time; and one that streams."""

from pathlib import Path

from agents import Agent, OpenAIChatCompletionsModel, function_tool
from openai import AsyncOpenAI

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

# There while the comparison runs: benchmarks/live.py.
port = Path(__file__).with_name("stamps.port")
if port.exists():
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port.read_text()}/v1", api_key="none")
    stamps = Agent(name="stamps", model=OpenAIChatCompletionsModel("stamps", client))
