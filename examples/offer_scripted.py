"""The agents of offer.py with scripts in the place of models: they run without a key.

A script answers by what it is sent alone, so that a step that is started again goes on where it was.
"""

import re
from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from examples.offer import PRICES, estimator, offer, writer

__all__ = ["estimator", "offer", "writer"]

COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
ORDERED = re.compile(rf"\b(\d+|{'|'.join(COUNTS)}) ({'|'.join(PRICES)})", re.IGNORECASE)

Call = tuple[str, dict[str, Any]]  # a tool and its arguments; 'successful' and 'failed' are how the task ends


class Script(BaseChatModel):
    """A chat model of LangChain's kind, which calls what ``says`` says of the messages."""

    says: Callable[[list[BaseMessage]], list[Call]]

    @property
    def _llm_type(self) -> str:
        return "script"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        """The tools come with each call."""
        return self.bind(tools=tools)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **given: Any) -> ChatResult:
        offered = [tool["function"]["name"] for tool in given["tools"]]
        calls = [
            {"name": next(tool for tool in offered if tool.endswith(name)), "args": arguments, "id": f"{name}-{number}"}
            for number, (name, arguments) in enumerate(self.says(messages))
        ]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content="", tool_calls=calls))])


def estimate(messages: list[BaseMessage]) -> list[Call]:
    """Ask for the prices, then hand their sum on."""
    prices = [int(message.text) for message in messages if isinstance(message, ToolMessage)]
    if prices:
        return [("delegate_to_agent", {"agent_id": writer.id, "message": f"{sum(prices)} euros"})]
    ordered = ORDERED.findall(messages[0].text)
    if not ordered:
        return [("failed", {"reason": f"This script sells {', '.join(PRICES)}; say how many."})]
    return [
        ("price", {"item": item.lower(), "count": COUNTS.get(count.lower()) or int(count)}) for count, item in ordered
    ]


def write(messages: list[BaseMessage]) -> list[Call]:
    """Name the sum that the estimator has handed on."""
    total = re.findall(r"\d+ euros", messages[-1].text)[-1]
    return [("successful", {"result": f"We offer all of it for {total}."})]


estimator.model, writer.model = Script(says=estimate), Script(says=write)
