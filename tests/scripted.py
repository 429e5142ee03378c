"""A model for tests that plans by what it is sent, not by how often it was asked.

A script that counts calls would start over in a new process; this one reads the number of tool results
in its input, so that a resumed step goes on where it was. Each real call is appended to a log.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from agents import Model, ModelResponse, Usage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

Plan = list[list[tuple[str, dict[str, Any]]] | str]


class PlannedModel(Model):
    """Answers turn n with ``plan[n]``: a list of (tool, arguments) calls, or the final text."""

    def __init__(self, plan: Plan, log: Path | None = None, seconds: float = 0.0) -> None:
        self.plan, self.log, self.seconds = plan, log, seconds

    async def get_response(
        self, system_instructions: Any, input: Any, model_settings: Any, *_: Any, **__: Any
    ) -> ModelResponse:
        items = [] if isinstance(input, str) else input
        turn, left = 0, sum(item.get("type") == "function_call_output" for item in items)
        while left > 0:
            left -= len(self.plan[turn])
            turn += 1
        if self.log is not None:
            append(self.log, f"model {turn}")
        await asyncio.sleep(self.seconds)
        return ModelResponse(
            output=answer(self.plan[turn]), usage=Usage(1, 10, output_tokens=5, total_tokens=15), response_id=None
        )

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


def answer(planned: list[tuple[str, dict[str, Any]]] | str) -> list[Any]:
    """Output items of one planned turn."""
    if isinstance(planned, str):
        text = ResponseOutputText(text=planned, type="output_text", annotations=[])
        return [ResponseOutputMessage(id="msg", content=[text], role="assistant", status="completed", type="message")]
    return [
        ResponseFunctionToolCall(
            call_id=f"call_{uuid4().hex[:12]}", name=name, arguments=json.dumps(arguments), type="function_call"
        )
        for name, arguments in planned
    ]


def append(log: Path, line: str) -> None:
    """Append a line in one write, so that processes don't mix theirs."""
    with log.open("ab", buffering=0) as file:
        file.write(f"{line} {os.getpid()}\n".encode())
