"""A step that answers a request of the Responses API: one durable model call, or a registered agent's run.

What every door needs of it is here: the check of a request, the parameters of its step, the Response of its output.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from agents import FunctionTool, Model, ModelResponse, ModelRetryAdvice, ModelSettings, ModelTracing, RunContextWrapper
from agents.items import TResponseStreamEvent
from agents.models._openai_retry import get_openai_retry_advice
from agents.retry import ModelRetryAdviceRequest
from openai import BadRequestError
from openai._models import construct_type
from openai.types.responses import ResponseCompletedEvent, ResponseStreamEvent

from timestep.agents.durable.model_calls import DurableModel
from timestep.agents.durable.step import DurableStep, Run, Stop
from timestep.agents.durable.streams import BrokenStreamError, assembled
from timestep.agents.plain import text
from timestep.agents.responses.chat import TOO_LONG, Answer, BrokenChatError, chat_body
from timestep.agents.responses.events import Narrator, item_id
from timestep.agents.responses.items import Item, complete, plain_items, shortened
from timestep.agents.responses.objects import ended, skeleton, usage_of
from timestep.agents.responses.request import BEHIND, EARLIER, ResponseRequest, checked
from timestep.agents.responses.request import check as check  # where batches look for it
from timestep.agents.responses.request import of_step as of_step
from timestep.agents.responses.where import answering
from timestep.agents.types import StepOutput
from timestep.errors import NotSupportedError, TooLargeError
from timestep.models import endpoints
from timestep.settings import Settings

RAW = "responses"  # the agent of steps that no agent answers, but a model alone
TAG = "openai:response"
MOST_CHARACTERS = 500_000  # Prefect takes parameters of 512 KiB


def response_id(step_id: str) -> str:
    """The id of the response that a step answers with."""
    return f"resp_{step_id.replace('-', '')}"


def parameters(body: dict[str, Any], earlier: Sequence[Item] = (), behind: int | None = None) -> dict[str, Any]:
    """Parameters of the flow ``step`` that answer the request ``body``, behind items that were said ``earlier``.

    ``behind`` is the number of the last of these in the request's conversation.

    Raises:
        ParameterError, NotSupportedError: as :func:`timestep.agents.responses.request.checked`.
        TooLargeError: it is longer, with what was said before, than a flow run's parameters may be.
    """
    request = checked(body)
    # The items get their ids here, once: a step that is started again asks the same.
    asked = {**body, "input": [*earlier, *complete(request.input)], EARLIER: len(earlier), BEHIND: behind}
    if (size := len(json.dumps(asked))) > MOST_CHARACTERS:
        raise TooLargeError(
            f"The request has {size} characters with what was said before; {MOST_CHARACTERS} are the most for a step."
        )
    inference: dict[str, Any] = {"request": asked, "max_tokens": request.max_output_tokens}
    inference |= {"temperature": request.temperature, "top_p": request.top_p}
    if request.agent is not None and request.tool_choice is not None:
        inference["tool_choice"] = request.tool_choice
    model = None if request.agent else request.model
    return {"agent": request.agent or RAW, "model": model, "inference": inference}


def response(
    body: dict[str, Any], output: StepOutput, created_at: float, completed_at: float | None = None
) -> dict[str, Any]:
    """The Response object of a step that answered the request ``body``; times are in seconds since 1970."""
    usage = usage_of(output.usage.input_tokens, output.usage.output_tokens)
    begun = skeleton(of_step(body), response_id(output.step_id), created_at)
    done = completed_at or created_at + output.seconds
    model = begun["model"] if output.agent != RAW else output.model
    return ended(begun, output.response or [], model=model, usage=usage, completed_at=done)


async def respond(step: DurableStep, request: ResponseRequest, settings: Settings) -> list[Item]:
    """The output items of one durable model call."""
    root = step.runs[""] = Run(step)
    items = complete(request.input)
    model = DurableModel(request.model, ChatModel(request, items, settings, step.step_id), RAW)
    try:
        with root.entered():
            answer = await model.get_response(
                system_instructions=request.instructions,
                input=plain_items(items),
                model_settings=_settings(request, items),
                tools=[_tool(tool.model_dump()) for tool in request.tools or []],
                output_schema=None,
                handoffs=[],
                tracing=ModelTracing.DISABLED,
                previous_response_id=None,
                conversation_id=None,
                prompt=None,
            )
    except Stop as stop:
        raise stop.error from stop.error.__cause__
    return [item.model_dump(mode="json", exclude_unset=True) for item in answer.output]


def spoken(request: ResponseRequest) -> list[Any]:
    """The input of a step that answers the request, as an agent takes it."""
    said = plain_items(complete(request.input))
    instructions = request.instructions if request.agent is not None else None
    return [{"role": "system", "content": instructions}, *said] if instructions else said


def agent_output(step_id: str, agent: str, items: list[Any]) -> list[Item]:
    """The output items of an agent's run: its calls, which are no business of the client's, as those of a server.

    ``items`` are the run's, as the Agents SDK has them.
    """
    outputs = {item["call_id"]: item["output"] for item in items if item.get("type") == "function_call_output"}
    told: list[Item] = []
    for item in items:
        kind = item.get("type") or "message"
        if kind == "message":
            whole = {**complete([item])[0], "status": "completed"}
            told.append({name: value for name, value in whole.items() if name != "provider_data"})
        elif kind == "function_call":
            told.append(made_call(item, outputs.get(item["call_id"]), agent))
    return [{**item, "id": item_id(item["type"], response_id(step_id), index)} for index, item in enumerate(told)]


def made_call(call: Item, output: Any, agent: str) -> Item:
    """A call that an agent asked for, with what came back."""
    return {
        "id": call["call_id"],
        "type": "mcp_call",
        "status": "completed",
        "server_label": agent,
        "name": call["name"],
        "arguments": call["arguments"],
        "output": None if output is None else text(output),
        "error": None,
    }


class ChatModel(Model):
    """Answers one request by a chat completion of the server that knows its model; what the SDK asks is the same."""

    def __init__(self, request: ResponseRequest, items: list[Item], settings: Settings, step_id: str) -> None:
        self.model = request.model
        self._request, self._items, self._settings, self._step_id = request, items, settings, step_id

    async def get_response(self, *arguments: Any, **named: Any) -> ModelResponse:
        return await assembled(self.stream_response, lambda _: None)

    async def stream_response(self, *arguments: Any, **named: Any) -> AsyncIterator[TResponseStreamEvent]:
        begun = skeleton(self._request, response_id(self._step_id), 0)
        narrator = Narrator(begun)
        answer = Answer(narrator)
        try:
            async with aclosing(answer.events(self._chunks())) as events:  # type: ignore[type-var]
                async for event in events:
                    yield construct_type(type_=ResponseStreamEvent, value=event)  # type: ignore[misc]
        except BrokenChatError as error:
            raise BrokenStreamError(str(error)) from error
        whole = {**begun, "output": narrator.output, "usage": answer.usage, "model": answer.model or self.model}
        event = {"type": "response.completed", "sequence_number": 0, "response": whole}
        yield construct_type(type_=ResponseCompletedEvent, value=event)  # type: ignore[misc]

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        return get_openai_retry_advice(request)

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        endpoint, name = await answering(self.model, self._settings, of_step=True)
        client = endpoints.client(endpoint, max_retries=0)
        items: list[Item] | None = self._items
        stream: Any = None
        while stream is None:
            try:
                stream = await client.chat.completions.create(**chat_body(self._request, items or []) | {"model": name})
            except BadRequestError as error:
                too_long = error.code == TOO_LONG and self._request.truncation == "auto"
                if not too_long or (items := shortened(items or [])) is None:
                    raise
        try:
            async for chunk in stream:
                yield chunk.model_dump(mode="json")
        finally:
            await stream.close()


def _settings(request: ResponseRequest, items: list[Item]) -> ModelSettings:
    """For the record: what the request says beside its items is part of what is asked."""
    asked = {name: value for name, value in chat_body(request, items).items() if name != "messages"}
    return ModelSettings(tool_choice=_demanded(request), extra_args={"request": asked})


def _demanded(request: ResponseRequest) -> str | None:
    choice = request.tool_choice
    if isinstance(choice, dict):
        return str(choice.get("name") or choice.get("mode"))
    return choice


def _tool(tool: dict[str, Any]) -> FunctionTool:
    """As the SDK knows it; it is the client's to run."""

    async def never(_: RunContextWrapper[Any], arguments: str) -> str:
        raise NotSupportedError("tools", "are run by the client.")

    return FunctionTool(
        tool["name"], tool["description"] or "", tool["parameters"] or {}, never, strict_json_schema=False
    )
