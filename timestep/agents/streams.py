"""A model's response, streamed: deltas are told as they come, the completed response is what counts."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from agents import ModelResponse, Usage
from agents.exceptions import ModelBehaviorError
from agents.items import TResponseStreamEvent
from agents.models._response_terminal import response_error_event_failure_error, response_terminal_failure_error
from agents.usage import _response_usage_to_usage
from openai.types.responses import Response, ResponseCompletedEvent, ResponseOutputItemDoneEvent

# The SDK's deltas that are told on, and as what.
DELTAS = {
    "response.output_text.delta": "output_text.delta",
    "response.function_call_arguments.delta": "tool_call.delta",
}

OnEvent = Callable[[TResponseStreamEvent], None]


class NoStreamError(Exception):
    """The model can't stream."""


async def assembled(stream: Callable[[], AsyncIterator[TResponseStreamEvent]], on_event: OnEvent) -> ModelResponse:
    """The whole response of a stream, each event of which but the last is told first.

    Raises:
        NoStreamError: the model has no streams, found out before the first event.
        ModelBehaviorError: the provider ended the stream by a failure, or before the response was complete.
    """
    output: list[Any] = []
    started = False
    try:
        async with aclosing(stream()) as events:  # type: ignore[type-var]
            async for event in events:
                started = True
                if isinstance(event, ResponseCompletedEvent):
                    return _response(event.response, output)
                _refuse_failure(event)
                if isinstance(event, ResponseOutputItemDoneEvent):
                    output.append(event.item)
                on_event(event)
    except NotImplementedError as error:
        if started:
            raise
        raise NoStreamError from error
    raise ModelBehaviorError("The model's stream ended before its response was complete.")


def completed(response: ModelResponse, model: str) -> ResponseCompletedEvent:
    """The one event of a response that is known as a whole."""
    usage = response.usage
    whole = Response(
        id=response.response_id or "resp",
        created_at=0,
        model=model,
        object="response",
        output=response.output,
        parallel_tool_calls=True,
        tool_choice="auto",
        tools=[],
        usage={
            "input_tokens": usage.input_tokens,
            "input_tokens_details": usage.input_tokens_details.model_dump(),
            "output_tokens": usage.output_tokens,
            "output_tokens_details": usage.output_tokens_details.model_dump(),
            "total_tokens": usage.total_tokens,
        },
    )
    return ResponseCompletedEvent(type="response.completed", response=whole, sequence_number=0)


def _response(response: Response, output: list[Any]) -> ModelResponse:
    return ModelResponse(
        # Some servers send their items one by one and leave the last event's list empty.
        output=response.output or output,
        usage=_response_usage_to_usage(response.usage) if response.usage else Usage(requests=1),
        response_id=response.id,
        request_id=getattr(response, "_request_id", None),
    )


def _refuse_failure(event: TResponseStreamEvent) -> None:
    if event.type in {"response.incomplete", "response.failed"}:
        response = getattr(event, "response", None)
        raise response_terminal_failure_error(event.type, response if isinstance(response, Response) else None)
    if event.type in {"error", "response.error"}:
        raise response_error_event_failure_error(event.type, event)
