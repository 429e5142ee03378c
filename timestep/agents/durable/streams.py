"""A model's response, streamed: deltas are told as they come, the completed response is what counts."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from agents import ModelResponse, Usage
from agents.exceptions import ModelBehaviorError, _mark_error_to_drain_stream_events
from agents.items import TResponseStreamEvent
from agents.models._response_terminal import format_response_error_event, format_response_terminal_failure
from agents.models.chatcmpl_stream_handler import ChatCmplStreamHandler
from agents.usage import _response_usage_to_usage
from openai.types.responses import Response, ResponseCompletedEvent, ResponseOutputItemDoneEvent

# The SDK's deltas that are told on, and as what.
DELTAS = {
    "response.output_text.delta": "output_text.delta",
    "response.reasoning_text.delta": "reasoning_text.delta",
    "response.reasoning_summary_text.delta": "reasoning_text.delta",  # what the SDK makes of 'reasoning_content'
    "response.function_call_arguments.delta": "tool_call.delta",
}

OnEvent = Callable[[TResponseStreamEvent], None]


class NoStreamError(Exception):
    """The model can't stream."""


class BrokenStreamError(ModelBehaviorError):
    """A stream that brought no whole response. ``code`` is the provider's, None where it gave no reason."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        _mark_error_to_drain_stream_events(self)  # who listens hears first what came before


async def assembled(stream: Callable[[], AsyncIterator[TResponseStreamEvent]], on_event: OnEvent) -> ModelResponse:
    """The whole response of a stream, each event of which but the last is told first.

    Raises:
        NoStreamError: the model has no streams, found out before the first event.
        BrokenStreamError: the provider ended the stream by a failure, or before the response was complete.
    """
    output: list[Any] = []
    started = False
    token = _whole.set(True)
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
    finally:
        _whole.reset(token)
    raise BrokenStreamError("The model's stream ended before its response was complete.")


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
        words = format_response_terminal_failure(event.type, response if isinstance(response, Response) else None)
        reason = getattr(getattr(response, "error", None), "code", None)
        # An incomplete one is too long, or was filtered: the next would be as well.
        raise BrokenStreamError(words, str(reason or "incomplete") if event.type == "response.incomplete" else reason)
    if event.type in {"error", "response.error"}:
        raise BrokenStreamError(format_response_error_event(event.type, event), getattr(event, "code", None))


# -- chat completions, whose streams the SDK takes for whole where they end, except for OpenAI's own

_whole: ContextVar[bool] = ContextVar("whole_streams", default=False)
_handle_stream = ChatCmplStreamHandler.handle_stream


async def _finished(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The chunks of a stream, which was cut off where none of them says why it ends."""
    finished = False
    async for chunk in chunks:
        finished = finished or any(choice.finish_reason is not None for choice in chunk.choices or ())
        yield chunk
    if not finished:
        raise BrokenStreamError("The model's stream ended without a finish_reason: its end is missing.")


def _handle_whole_stream(response: Response, stream: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
    """The SDK's, which outside of steps is as it was."""
    return _handle_stream(response, _finished(stream) if _whole.get() else stream, *arguments, **named)  # type: ignore[arg-type]


ChatCmplStreamHandler.handle_stream = _handle_whole_stream  # type: ignore[method-assign]
