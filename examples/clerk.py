"""The demo's agent: a clerk with one tool, a calculator, on the local model."""

from agents import Agent, ModelSettings

from timestep import default_tools

clerk = Agent(
    name="clerk",
    instructions="You are a helpful assistant. Use a tool when it helps.",
    tools=[tool for tool in default_tools() if tool.name == "calculator"],
    model_settings=ModelSettings(temperature=0.0, max_tokens=100),
)
