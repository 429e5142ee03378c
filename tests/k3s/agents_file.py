"""Agents of the cluster's scenarios: every call sends a line to the collector as it begins and as it ends.

The chart gets this file as a value, so that it stands alone. A step's input is its tag.
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from agents import Agent, Model, ModelResponse, ModelSettings, Usage, function_tool
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

SECONDS = 1.0  # of each call: long enough to be hit


def note_down(tag: str, call: str, moment: str) -> None:
    line = {"at": time.time(), "tag": tag, "call": call, "moment": moment, "pod": os.environ.get("HOSTNAME")}
    host, port = os.environ["CALLS"].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as collector:
        collector.sendall(json.dumps(line).encode() + b"\n")
        if not collector.recv(1):
            raise ConnectionError("The collector went away.")


class Planned(Model):
    """Answers by the number of tool results it is shown, so that any process gives the same answer."""

    def __init__(self, agent: str, plan: list[list[str] | str], seconds: float = SECONDS) -> None:
        self.agent, self.plan, self.seconds = agent, plan, seconds

    async def get_response(
        self, system_instructions: Any, input: Any, model_settings: ModelSettings, *_: Any, **__: Any
    ) -> ModelResponse:
        tag = str(input[0]["content"])
        turn, left = 0, sum(item.get("type") == "function_call_output" for item in input)
        while left > 0:
            left -= len(self.plan[turn])
            turn += 1
        note_down(tag, f"{self.agent}/{turn}", "begun")
        await asyncio.sleep(self.seconds)
        note_down(tag, f"{self.agent}/{turn}", "ended")
        usage = Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15)
        return ModelResponse(output=self._said(tag, turn), usage=usage, response_id=None)

    def _said(self, tag: str, turn: int) -> list[Any]:
        planned = self.plan[turn]
        if isinstance(planned, str):
            text = ResponseOutputText(text=planned, type="output_text", annotations=[])
            return [
                ResponseOutputMessage(id="msg", content=[text], role="assistant", status="completed", type="message")
            ]
        return [
            ResponseFunctionToolCall(
                call_id=f"call_{uuid4().hex[:12]}",
                name=name,
                arguments=json.dumps({"tag": tag, "call": f"{self.agent}/{turn}/{index}"}),
                type="function_call",
            )
            for index, name in enumerate(planned)
        ]

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


@function_tool
async def note(tag: str, call: str) -> str:
    """A call that may run again where it was cut."""
    note_down(tag, call, "begun")
    await asyncio.sleep(SECONDS)
    note_down(tag, call, "ended")
    return f"{call} of {tag}"


@function_tool(needs_approval=True)
async def delete(tag: str, call: str) -> str:
    """A call that a person is asked about."""
    note_down(tag, call, "begun")
    note_down(tag, call, "ended")
    return f"{call} of {tag}"


PLAN: list[list[str] | str] = [["note"], ["note", "note"], ["note"], ["note"], "all done"]
worker = Agent(name="worker", tools=[note], model=Planned("worker", PLAN))
careful = Agent(name="careful", tools=[note, delete], model=Planned("careful", [["note"], ["delete"], "all done"]))
quick = Agent(name="quick", model=Planned("quick", ["done"], seconds=0))
# On the base model, of which it gets a version of its own when it learns.
pupil = Agent(name="pupil", instructions="Answer in one line.", model_settings=ModelSettings(max_tokens=8))
talker = Agent(name="talker", instructions="Tell a long story.", model_settings=ModelSettings(max_tokens=400))
