"""ControlFlow agents, tasks and flows of the tests; real calls are logged to ``calls.log`` beside this file's copy."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any, Literal

import controlflow
from agents import ModelResponse, function_tool

from tests.scripted import Plan, PlannedModel, append
from timestep.agents.ask import ask_user

LOG = Path(__file__).with_name("calls.log")
DYING = Path(__file__).with_name("dying")  # holds what a process dies in, and how


class Planned(PlannedModel):
    """A planned model that calls the present task's tools as ``succeed`` and ``fail``."""

    def __init__(self, plan: Plan, after: str | None = None) -> None:
        super().__init__(plan, LOG)
        self.after = after  # a line of the log that it waits for

    async def get_response(self, *given: Any, tools: Any = (), **named: Any) -> ModelResponse:
        while self.after is not None and not (LOG.exists() and self.after in LOG.read_text()):
            await asyncio.sleep(0.01)
        names = [named.pop(name) for name in ("system_instructions", "input", "model_settings") if name in named]
        response = await super().get_response(*given, *names, **named)
        for call in response.output:
            if call.type == "function_call" and call.name in ("succeed", "fail"):
                ending = {"succeed": "_successful", "fail": "_failed"}[call.name]
                call.name = next(tool.name for tool in tools if tool.name.endswith(ending))
        return response


def call(name: str, **arguments: Any) -> list[tuple[str, dict[str, Any]]]:
    """A turn of one call."""
    return [(name, arguments)]


def note(text: str) -> str:
    """Append to the log."""
    append(LOG, f"tool {text}")
    if DYING.exists() and DYING.read_text() == text:
        DYING.unlink()
        os._exit(9)
    return f"noted {text}"


async def slow(seconds: float) -> str:
    """Take a while."""
    append(LOG, "tool slow")
    await asyncio.sleep(seconds)
    return "awake"


def stuck() -> str:
    """Block a thread."""
    append(LOG, "tool stuck")
    time.sleep(60)
    return "never"


def broken() -> str:
    """Fail."""
    append(LOG, "tool broken")
    raise ValueError("this tool is broken")


@function_tool(needs_approval=True)
def pay(amount: int) -> str:
    """Pay."""
    append(LOG, f"tool pay {amount}")
    return f"paid {amount}"


guarded = controlflow.tool(note, name="guarded", description="Append, if allowed.", metadata={"needs_approval": True})
rare = controlflow.tool(note, name="rare", description="Append, once.", metadata={"once": True})

editor = controlflow.Agent(name="editor", model=Planned([call("note", text="edited"), call("succeed", result="done")]))
editor.tools = [controlflow.tool(note)]
author = controlflow.Agent(
    name="author",
    tools=[note],
    model=Planned(
        [
            [("note", {"text": "one"}), ("note", {"text": "one"})],
            call("note", text="two"),
            call("delegate_to_agent", agent_id=editor.id, message="your turn"),
        ]
    ),
)
handed = controlflow.Task("Write it together.", agents=[author, editor])

payer = controlflow.Agent(
    name="payer",
    tools=[pay, guarded],
    model=Planned([[("pay", {"amount": 5}), ("guarded", {"text": "g"})], call("succeed", result="settled")]),
)
insister = controlflow.Agent(
    name="insister",
    tools=[pay],
    model=Planned([call("pay", amount=1), call("pay", amount=1), call("succeed", result="gave up")]),
)
careful = controlflow.Agent(
    name="careful", tools=[rare], model=Planned([call("rare", text="rare"), call("succeed", result="once")])
)
asker = controlflow.Agent(
    name="asker",
    tools=[ask_user],
    interactive=True,
    model=Planned(
        [call("ask_user", question="Why?"), call("cli_input", question="How?"), call("succeed", result="ok")]
    ),
)


def is_loud(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
    """Whether a note needs an approval."""
    return bool(arguments["text"].isupper())


class Stuttering(Planned):
    """Gives one id to all its calls."""

    async def get_response(self, *given: Any, **named: Any) -> ModelResponse:
        response = await super().get_response(*given, **named)
        for item in response.output:
            item.call_id = "call_1"  # type: ignore[union-attr]
        return response


loud = controlflow.tool(note, name="loud", description="Append, if allowed.", metadata={"needs_approval": is_loud})
chooser = controlflow.Agent(
    name="chooser",
    tools=[loud],
    model=Planned([[("loud", {"text": "quiet"}), ("loud", {"text": "LOUD"})], call("succeed", result="ok")]),
)
stutterer = controlflow.Agent(
    name="stutterer", tools=[note], model=Stuttering([[("note", {"text": "one"}), ("note", {"text": "two"})]])
)
sleeper = controlflow.Agent(name="sleeper", tools=[slow], model=Planned([call("slow", seconds=60)]))
blocker = controlflow.Agent(name="blocker", tools=[stuck], model=Planned([call("stuck")]))
clumsy = controlflow.Agent(
    name="clumsy",
    tools=[broken],
    model=Planned([call("broken"), call("nowhere"), call("succeed", wrong=1), call("succeed", result="it failed")]),
)
talker = controlflow.Agent(name="talker", model=Planned([f"words {n}" for n in range(3)]))
quitter = controlflow.Agent(name="quitter", model=Planned([call("fail", reason="No\n  ink.")]))
nameless = controlflow.Agent(instructions="I have no name.", model=Planned([call("succeed", result="nobody")] * 2))

base = controlflow.Task("Lay the ground.", name="base", agents=[nameless])
wall = controlflow.Task("Build a wall.", depends_on=[base], agents=[nameless])
roof = controlflow.Task("Put a roof on it.", name="roof", result_type=Literal["flat", "steep"], depends_on=[base, wall])
roof.agents = [controlflow.Agent(name="roofer", model=Planned([call("succeed", result=1)]))]


def worker(name: str, result: Any, after: str | None = None) -> controlflow.Agent:
    """An agent that notes its name, then succeeds."""
    plan: Plan = [call("note", text=name), call("succeed", result=result)]
    return controlflow.Agent(name=name, tools=[note], model=Planned(plan, after))


@controlflow.flow
def report(topic: str, pages: int = 1) -> str:
    """A synchronous flow with two tasks."""
    facts = controlflow.run(f"Find facts about {topic}.", agents=[worker("finder", "facts")])
    text = controlflow.Task(
        "Write the report.", name="text", context={"facts": facts}, agents=[worker("writer", "text")]
    )
    return f"{topic}: {text.run()} of {facts}, {pages} page"


@controlflow.flow
async def both(topic: str) -> list[str]:
    """An asynchronous flow with two tasks at the same time; the one that starts later ends first."""
    found = await asyncio.gather(
        controlflow.run_async("Do it.", context={"n": 1}, agents=[worker("first", "a", "model 1")]),
        controlflow.run_async("Do it.", context={"n": 2}, agents=[worker("second", "b")]),
    )
    return list(found)


@controlflow.flow
async def blocking() -> str:
    """A mistake: the synchronous call in an asynchronous flow."""
    return str(controlflow.run("Do it.", agents=[worker("never", "x")]))


@controlflow.task(agents=[worker("poet", "a poem")])
def poem(about: str) -> str:
    """Write a poem."""


studio = controlflow.Flow(default_agent=worker("poet", "roses"))


@controlflow.flow
def held() -> str:
    """A synchronous flow that waits for a tool that blocks a thread."""
    agent = controlflow.Agent(name="holder", tools=[stuck], model=Planned([call("stuck")]))
    return str(controlflow.run("Hold.", agents=[agent]))


@controlflow.flow
def pair(a: str, b: str) -> str:
    """Two arguments."""
    return a + b
