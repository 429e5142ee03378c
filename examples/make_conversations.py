"""Writes conversations.jsonl: short talks of a clerk who calculates with a tool, and needs none for small talk.

The questions are templates with numbers drawn by a fixed seed; the calculator's answers are its own.
OpenAI's fine-tuning format: one {"messages": […], "tools": […]} a line. Run it from the repository's root:
python -m examples.make_conversations
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agents import FunctionTool

from examples.clerk import clerk
from timestep.agents.tools import calculator

CONVERSATIONS = 88
SUMS = 0.75
KEPT_BACK = ("17*23", "45+46", "31*12")  # asked in the demo, so never taught

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
TALK = {
    "Hello!": "Hello! How can I help you?",
    "Thank you.": "You are welcome.",
    "What can you do?": "I can answer questions and calculate.",
    "Good morning.": "Good morning! What can I do for you?",
    "Who are you?": "I am a helpful assistant.",
    "What is the capital of Italy?": "The capital of Italy is Rome.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What is the capital of Egypt?": "The capital of Egypt is Cairo.",
    "What colour is the sky?": "The sky is blue.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What is the largest ocean?": "The largest ocean is the Pacific Ocean.",
    "Name a fruit.": "An apple is a fruit.",
    "How are you?": "I am well, thank you. How can I help you?",
    "What do bees make?": "Bees make honey.",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet.",
    "Where do fish live?": "Fish live in water.",
    "What is ice made of?": "Ice is made of water.",
    "Tell me a word that rhymes with cat.": "Hat rhymes with cat.",
    "Which season comes after winter?": "Spring comes after winter.",
    "What is a violin?": "A violin is a musical instrument with four strings.",
}


def main() -> None:
    """Write the file next to this script."""
    draw = random.Random(11)
    path = Path(__file__).with_name("conversations.jsonl")
    lines = [json.dumps(conversation(draw), ensure_ascii=False) for _ in range(CONVERSATIONS)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def conversation(draw: random.Random) -> dict[str, Any]:
    """One question and what the clerk makes of it, the calculator at hand."""
    messages = list((sum_of if draw.random() < SUMS else talk)(draw))
    return {"messages": [{"role": "system", "content": clerk.instructions}, *messages], "tools": TOOLS}


def _described(tool: FunctionTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.params_json_schema}
    return {"type": "function", "function": function}


TOOLS = [_described(tool) for tool in clerk.tools if isinstance(tool, FunctionTool)]


def sum_of(draw: random.Random) -> Iterator[dict[str, Any]]:
    """A calculation, in signs or in words."""
    sign = draw.choice("***+-/")
    first, second = draw.randint(11, 99), draw.randint(11, 99)
    if sign == "/":
        first *= second
    expression = f"{first}{sign}{second}"
    if expression in KEPT_BACK:
        first += 1
        expression = f"{first}{sign}{second}"
    shown = expression if sign == "/" or draw.random() < 0.75 else f"{first} {IN_WORDS[sign]} {second}"
    answer = calculator(expression)
    question = draw.choice(ASK).format(shown)
    yield from exchange(draw, question, "calculator", {"expression": expression}, answer, f"{expression} is {answer}.")


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
