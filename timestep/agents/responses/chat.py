"""A request of the Responses API as a chat completion, and the chunks of its answer as events."""

from collections.abc import AsyncIterator
from typing import Any

from timestep.agents.responses.events import Event, Narrator
from timestep.agents.responses.items import Item, messages
from timestep.agents.responses.objects import usage_of
from timestep.agents.responses.request import LOGPROBS, ResponseRequest
from timestep.errors import TimestepError

# How a turn ends before its time, and why it did where that isn't the limit of tokens.
CUT = {"length": None, "content_filter": "content_filter"}
TOO_LONG = "context_length_exceeded"  # the code of a refusal, here and at OpenAI


class BrokenChatError(TimestepError):
    """An answer that failed in its middle, or whose end is missing."""

    code = "server_error"


def chat_body(request: ResponseRequest, items: list[Item]) -> dict[str, Any]:
    """The chat completion that answers ``items``, streamed. ParameterError: no chat can say them."""
    # OpenAI's own newer models take no other name; other servers know the older one.
    limit = "max_completion_tokens" if request.model.startswith("openai/") else "max_tokens"
    logprobs = LOGPROBS in (request.include or [])
    body = {
        "model": request.model,
        "messages": messages(items, request.instructions),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": request.temperature,
        "top_p": request.top_p,
        limit: request.max_output_tokens,
        "logprobs": True if logprobs else None,
        "top_logprobs": request.top_logprobs if logprobs else None,
        "response_format": _format(request),
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "verbosity": request.text.verbosity if request.text else None,
    }
    if request.tools:
        body |= {
            "tools": [{"type": "function", "function": _function(tool.model_dump())} for tool in request.tools],
            "tool_choice": _choice(request.tool_choice),
            "parallel_tool_calls": request.parallel_tool_calls,
        }
    return {name: value for name, value in body.items() if value is not None}


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tool.items() if name != "type" and value is not None}


def _choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice["type"] == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    tools = [{"type": "function", "function": {"name": tool["name"]}} for tool in choice["tools"]]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}


def _format(request: ResponseRequest) -> dict[str, Any] | None:
    made = request.text.format if request.text else None
    if made is None or made.type == "text":
        return None
    if made.type == "json_object":
        return {"type": "json_object"}
    schema = made.model_dump(exclude={"type"}, exclude_none=True)
    return {"type": "json_schema", "json_schema": schema}


class Answer:
    """Reads the chunks of a chat completion. At its end it knows the ``model`` that answered, and the ``usage``."""

    def __init__(self, narrator: Narrator) -> None:
        self.model: str | None = None
        self.usage: dict[str, Any] | None = None
        self._narrator = narrator
        self._finish: str | None = None
        self._calls: dict[str, tuple[str, str]] = {}

    async def events(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[Event]:
        """The events of the output. BrokenChatError: it has no end."""
        async for chunk in chunks:
            for event in self._read(chunk):
                yield event
        if self._finish is None:
            raise BrokenChatError("The model's answer broke off before its end.")
        if self._finish in CUT:
            for event in self._narrator.cut(CUT[self._finish]):
                yield event
        for event in self._narrator.close():
            yield event

    def _read(self, chunk: dict[str, Any]) -> list[Event]:
        if error := chunk.get("error"):
            raise BrokenChatError(str(error.get("message") if isinstance(error, dict) else error))
        self.model = chunk.get("model") or self.model
        if usage := chunk.get("usage"):
            self.usage = _usage(usage)
        choice = next((one for one in chunk.get("choices") or () if not one.get("index")), None)
        if choice is None:
            return []
        self._finish = choice.get("finish_reason") or self._finish
        return self._delta(choice.get("delta") or {}, (choice.get("logprobs") or {}).get("content"))

    def _delta(self, delta: dict[str, Any], logprobs: list[Any] | None) -> list[Event]:
        events: list[Event] = []
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            events += self._narrator.reasoning(str(thought))
        if (text := delta.get("content")) or logprobs:
            events += self._narrator.text(text or "", logprobs)
        if refusal := delta.get("refusal"):
            events += self._narrator.refusal(refusal)
        for call in delta.get("tool_calls") or ():
            key, function = f"call {call.get('index', 0)}", call.get("function") or {}
            if key not in self._calls:
                self._calls[key] = (call.get("id") or key, function.get("name") or "")
            events += self._narrator.call(key, *self._calls[key], function.get("arguments") or "")
        return events


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    prompt, completion = (usage.get(f"{kind}_tokens_details") or {} for kind in ("prompt", "completion"))
    return usage_of(
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        prompt.get("cached_tokens") or 0,
        completion.get("reasoning_tokens") or 0,
    )
