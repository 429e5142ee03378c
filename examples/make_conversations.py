"""Writes conversations.jsonl: short talks in which an assistant uses the default tools, to learn from.

The questions are templates with numbers, places and notes drawn by a fixed seed; the calculator's answers
are its own. OpenAI's fine-tuning format: one {"messages": […], "tools": […]} a line. Run it from the
repository's root: python examples/make_conversations.py
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timestep.agents.assistant import INSTRUCTIONS
from timestep.agents.tools import calculator, default_tools

CONVERSATIONS = 52
TOOLS = {tool.name: tool for tool in default_tools()}
KEPT_BACK = "17*23"  # asked in the demo and in the tests, so never taught

ASK = (
    "What is {}?",
    "What is {}?",
    "What is {}?",
    "Calculate {}.",
    "How much is {}?",
    "What's {}?",
    "Compute {} please.",
    "{} = ?",
    "Tell me {}.",
)
IN_WORDS = {"*": "times", "+": "plus", "-": "minus"}
ZONES = {
    "Paris": ("Europe/Paris", "2025-03-04T14:05:00+01:00"),
    "Tokyo": ("Asia/Tokyo", "2025-03-04T22:05:00+09:00"),
    "London": ("Europe/London", "2025-03-04T13:05:00+00:00"),
    "New York": ("America/New_York", "2025-03-04T08:05:00-05:00"),
    "Cairo": ("Africa/Cairo", "2025-03-04T15:05:00+02:00"),
}
NOTES = {
    "shopping.txt": "bread, milk, apples",
    "todo.txt": "water the plants",
    "ideas.txt": "build a kite",
    "packing.txt": "socks, map, torch",
}
TALK = {
    "Hello!": "Hello! How can I help you?",
    "Thank you.": "You are welcome.",
    "What can you do?": "I can calculate, tell the time, and read and write files.",
    "Good morning.": "Good morning! What can I do for you?",
}


def main() -> None:
    """Write the file next to this script."""
    draw = random.Random(11)
    path = Path(__file__).with_name("conversations.jsonl")
    lines = [json.dumps(conversation(draw), ensure_ascii=False) for _ in range(CONVERSATIONS)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def conversation(draw: random.Random) -> dict[str, Any]:
    """One request, answered with the right one of the tools offered: all five, or some of them to save time."""
    kind = draw.choices((sum_of, clock, files, talk), (80, 8, 6, 6))[0]
    messages = list(kind(draw))
    called = {call["function"]["name"] for message in messages for call in message.get("tool_calls", ())}
    wanted = draw.choices((1, 2, 5), (45, 25, 30))[0]
    others = draw.sample([name for name in TOOLS if name not in called], len(TOOLS) - len(called))
    offered = called | set(others[: wanted - len(called)])
    tools = [
        {
            "type": "function",
            "function": {"name": name, "description": tool.description, "parameters": tool.params_json_schema},
        }
        for name, tool in TOOLS.items()
        if name in offered
    ]
    return {"messages": [{"role": "system", "content": INSTRUCTIONS}, *messages], "tools": tools}


def sum_of(draw: random.Random) -> Iterator[dict[str, Any]]:
    """A calculation, in signs or in words."""
    sign = draw.choice("***+-/")
    first, second = draw.randint(11, 99), draw.randint(11, 99)
    if sign == "/":
        first *= second
    expression = f"{first}{sign}{second}"
    if expression == KEPT_BACK:
        first += 1
        expression = f"{first}{sign}{second}"
    shown = expression if sign == "/" or draw.random() < 0.75 else f"{first} {IN_WORDS[sign]} {second}"
    answer = calculator(expression)
    question = draw.choice(ASK).format(shown)
    yield from exchange(draw, question, "calculator", {"expression": expression}, answer, f"{expression} is {answer}.")


def clock(draw: random.Random) -> Iterator[dict[str, Any]]:
    """The time in a city."""
    city, (zone, now) = draw.choice(list(ZONES.items()))
    question = draw.choice(("What time is it in {}?", "Which time do they have in {} now?")).format(city)
    yield from exchange(draw, question, "clock", {"timezone": zone}, now, f"It is {now[11:16]} in {city}.")


def files(draw: random.Random) -> Iterator[dict[str, Any]]:
    """A note, written or read."""
    path, text = draw.choice(list(NOTES.items()))
    if draw.random() < 0.5:
        done = f"Wrote {len(text)} bytes to {path}."
        question = f"Write '{text}' to {path}."
        yield from exchange(draw, question, "write_file", {"path": path, "text": text}, done, f"I wrote it to {path}.")
    else:
        yield from exchange(draw, f"What does {path} say?", "read_file", {"path": path}, text, f"It says: {text}")


def talk(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Small talk, which needs no tool."""
    said, answer = draw.choice(list(TALK.items()))
    yield {"role": "user", "content": said}
    yield {"role": "assistant", "content": answer}


def exchange(
    draw: random.Random, question: str, tool: str, arguments: dict[str, str], output: str, answer: str
) -> Iterator[dict[str, Any]]:
    """A question, the call it needs, the tool's output and the answer."""
    call = {"id": f"call_{draw.getrandbits(48):012x}", "type": "function"}
    function = {"name": tool, "arguments": json.dumps(arguments)}
    yield {"role": "user", "content": question}
    yield {"role": "assistant", "content": None, "tool_calls": [call | {"function": function}]}
    yield {"role": "tool", "tool_call_id": call["id"], "content": output}
    yield {"role": "assistant", "content": answer}


if __name__ == "__main__":
    main()
