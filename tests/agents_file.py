"""Agents of the test service; they log each real call to ``calls.log`` beside this file's copy."""

import asyncio
import os
import signal
import time
from pathlib import Path

from agents import Agent, ModelSettings, function_tool

from tests.scripted import PlannedModel, append
from timestep.agents.ask import ask_user

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


@function_tool(needs_approval=True)
def delete(path: str) -> str:
    """Delete a file."""
    append(LOG, f"tool delete {path}")
    return f"deleted {path}"


@function_tool(needs_approval=True)
def pay(amount: int) -> str:
    """Die in the middle, the first time."""
    append(LOG, f"tool pay {amount}")
    if LOG.read_text().count("tool pay") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"paid {amount}"


cleaner = Agent(
    name="cleaner",
    tools=[delete],
    model=PlannedModel([[("delete", {"path": "a"})], [("delete", {"path": "b"})], "cleaned"], LOG),
)
pair = Agent(
    name="pair",
    tools=[delete, ask_user],
    model=PlannedModel([[("delete", {"path": "x"}), ("ask_user", {"question": "Which colour?"})], "painted"], LOG),
)
payer = Agent(name="payer", tools=[pay], model=PlannedModel([[("pay", {"amount": 5})], "settled"], LOG))

GATE = Path(__file__).with_name("gate")


@function_tool
def blocked() -> str:
    """Hold on to a thread until the gate is there."""
    append(LOG, "tool blocked")
    while not GATE.exists():
        time.sleep(0.02)
    return "opened"


@function_tool
async def idle() -> str:
    """Wait for ever."""
    append(LOG, "tool idle")
    await asyncio.Event().wait()
    return "never"


@function_tool
async def block() -> str:
    """Let nothing else of the process run, the first time."""
    append(LOG, "tool block")
    if LOG.read_text().count("tool block") == 1:
        time.sleep(60)
    return "unblocked"


@function_tool
def die() -> str:
    """Die in the middle, every time."""
    append(LOG, "tool die")
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


blocker = Agent(
    name="blocker",
    tools=[remember, blocked],
    model=PlannedModel([[("remember", {"text": "before"})], [("blocked", {})], "passed"], LOG),
)
idler = Agent(name="idler", tools=[idle], model=PlannedModel([[("idle", {})], "never"], LOG))
stubborn = Agent(name="stubborn", tools=[block], model=PlannedModel([[("block", {})], "unblocked"], LOG))
mortal = Agent(name="mortal", tools=[die], model=PlannedModel([[("die", {})], "never"], LOG))

# There while a test uses them: each flow run would import ControlFlow, which takes two seconds.
if Path(__file__).with_name("controlflow").exists():
    import controlflow

    from tests.controlflow_file import Planned, call

    approver = controlflow.Agent(
        name="approver",
        tools=[delete],
        model=Planned([call("delete", path="a"), call("succeed", result="cleaned")]),
    )
    lingerer = controlflow.Agent(name="lingerer", tools=[idle], model=Planned([call("idle")]))
    approver.model.log = lingerer.model.log = LOG

# Two agents on one tiny local model: what one learns, the other must not.
TINY = str(Path(__file__).with_name("tiny.gguf"))
pupil = Agent(name="pupil", instructions="Answer.", model=TINY, model_settings=ModelSettings(max_tokens=8))
classmate = Agent(name="classmate", instructions="Answer.", model=TINY, model_settings=ModelSettings(max_tokens=8))
