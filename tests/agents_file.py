"""Agents of the test service; they log each real call to ``calls.log`` beside this file's copy."""

import time
from pathlib import Path

from agents import Agent, ModelSettings, function_tool

from tests.scripted import PlannedModel, append

LOG = Path(__file__).with_name("calls.log")


@function_tool
def remember(text: str) -> str:
    """Append to the log."""
    append(LOG, f"tool {text}")
    return f"remembered {text}"


@function_tool
def slow(seconds: float) -> str:
    """Take a while."""
    append(LOG, "tool slow")
    time.sleep(seconds)
    return "done"


@function_tool
def broken() -> str:
    """Fail."""
    raise ValueError("this tool is broken")


planner = Agent(
    name="planner",
    instructions="Plan.",
    tools=[remember],
    model=PlannedModel(
        [[("remember", {"text": "one"}), ("remember", {"text": "one"})], [("remember", {"text": "two"})], "all done"],
        LOG,
    ),
)
sleeper = Agent(
    name="sleeper",
    tools=[remember, slow],
    model=PlannedModel([[("remember", {"text": "before"})], [("slow", {"seconds": 20})], "awake"], LOG),
)
clumsy = Agent(name="clumsy", tools=[broken], model=PlannedModel([[("broken", {})], "it failed"], LOG))
looper = Agent(name="looper", tools=[remember], model=PlannedModel([[("remember", {"text": "x"})]] * 50 + ["end"], LOG))

specialist = Agent(
    name="specialist", tools=[remember], model=PlannedModel([[("remember", {"text": "deep"})], "deep done"], LOG)
)
manager = Agent(
    name="manager",
    tools=[specialist.as_tool("ask_specialist", "Ask the specialist.")],
    model=PlannedModel([[("ask_specialist", {"input": "go"})], "managed"], LOG),
)
receiver = Agent(name="receiver", model=PlannedModel(["received", "received"], LOG))
sender = Agent(
    name="sender", handoffs=[receiver], model=PlannedModel([[("transfer_to_receiver", {})], "never said"], LOG)
)
receiver.handoffs = [sender]  # a circle

# Two agents on one tiny local model: what one learns, the other must not.
TINY = str(Path(__file__).with_name("tiny.gguf"))
pupil = Agent(name="pupil", instructions="Answer.", model=TINY, model_settings=ModelSettings(max_tokens=8))
classmate = Agent(name="classmate", instructions="Answer.", model=TINY, model_settings=ModelSettings(max_tokens=8))
