"""Agents of the fault injection: every call, real or repeated, leaves a line in ``calls.jsonl`` as it begins and ends,
and so does every change of its flow run's state that a process asks Prefect for.

A step's input is its tag. ``chaotic``: a note; two notes at once; a payment, which is declared ``once``; a last word.
``careful``: a note; two deletions that a person has to approve; a note; a last word. Four model calls and four tool
calls each.
"""

import asyncio
import functools
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from agents import Agent, Model, ModelResponse, ModelSettings, Usage, function_tool

from tests.scripted import answer
from timestep import once

LOG = Path(__file__).with_name("calls.jsonl")
SECONDS = 0.3  # of each call: long enough to be hit


def note_down(tag: str, call: str, moment: str) -> None:
    line = {"at": time.time(), "tag": tag, "call": call, "moment": moment, "pid": os.getpid()}
    with LOG.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def note_states(client: type[httpx.AsyncClient | httpx.Client]) -> None:
    """Have each such request leave a line. Of a flow run's states Prefect does not say which process set them."""
    send = client.send

    @functools.wraps(send)
    def noted(self: Any, request: httpx.Request, *rest: Any, **options: Any) -> Any:
        run, _, action = request.url.path.partition("/flow_runs/")[2].partition("/")
        if action == "set_state":
            note_down(run, json.loads(request.content)["state"]["type"], "state")
        return send(self, request, *rest, **options)

    client.send = noted  # type: ignore[method-assign]


note_states(httpx.AsyncClient)
note_states(httpx.Client)


class Planned(Model):
    """Answers by the number of tool results it is shown, so that any process gives the same answer."""

    def __init__(self, agent: str, plan: list[list[tuple[str, dict[str, Any]]] | str]) -> None:
        self.agent, self.plan = agent, plan

    async def get_response(
        self, system_instructions: Any, input: Any, model_settings: ModelSettings, *_: Any, **__: Any
    ) -> ModelResponse:
        tag = str(input[0]["content"])
        turn, left = 0, sum(item.get("type") == "function_call_output" for item in input)
        while left > 0:
            left -= len(self.plan[turn])
            turn += 1
        note_down(tag, f"{self.agent}/{turn}", "begun")
        await asyncio.sleep(SECONDS)
        note_down(tag, f"{self.agent}/{turn}", "ended")
        planned = self.plan[turn]
        if not isinstance(planned, str):
            planned = [
                (name, arguments | {"tag": tag, "call": f"{self.agent}/{turn}/{index}"})
                for index, (name, arguments) in enumerate(planned)
            ]
        usage = Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15)
        return ModelResponse(output=answer(planned), usage=usage, response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


async def _work(tag: str, call: str) -> str:
    note_down(tag, call, "begun")
    await asyncio.sleep(SECONDS)
    note_down(tag, call, "ended")
    return f"{call} of {tag}"


@function_tool
async def note(tag: str, call: str) -> str:
    """A call that may run again where it was cut."""
    return await _work(tag, call)


@function_tool
async def pay(tag: str, call: str) -> str:
    """A call that must not."""
    return await _work(tag, call)


@function_tool(needs_approval=True)
async def delete(tag: str, call: str) -> str:
    """A call that a person is asked about."""
    return await _work(tag, call)


pay = once(pay)
chaotic = Agent(
    name="chaotic",
    tools=[note, pay],
    model=Planned("chaotic", [[("note", {})], [("note", {}), ("note", {})], [("pay", {})], "all done"]),
)
careful = Agent(
    name="careful",
    tools=[note, delete],
    model=Planned("careful", [[("note", {})], [("delete", {}), ("delete", {})], [("note", {})], "all done"]),
)
pupil = Agent(name="pupil", instructions="Answer.", model=str(Path(__file__).with_name("tiny.gguf")))
