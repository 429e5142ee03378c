"""A chat completion request, checked: what OpenAI's API names, and what of it this engine can do."""

import json
import re
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from timestep.models.generation import Options

_REFUSED = ("logprobs", "top_logprobs", "logit_bias", "functions", "function_call", "audio", "web_search_options")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _shaped(message: dict[str, Any]) -> dict[str, Any]:
    """What a template would trip over; the renderer judges roles and parts itself."""
    content, calls = message.get("content"), message.get("tool_calls")
    if not isinstance(content, str | list | None):
        raise ValueError("'content' must be text, a list of text parts, or null")
    if not (calls is None or (isinstance(calls, list) and all(map(_is_call, calls)))):
        raise ValueError("'tool_calls' must be a list of calls: {'function': {'name': …, 'arguments': …}}")
    return message


def _is_call(call: Any) -> bool:
    match call:
        case {"function": {"name": str()}}:
            return True
    return False


Message = Annotated[dict[str, Any], AfterValidator(_shaped)]
Stops = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value or [])]


class StreamOptions(BaseModel):
    """``stream_options`` of a streamed request."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. Unknown fields are ignored, impossible ones refused by name."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None  # judged together with the tools
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    stop: Stops = Field(default_factory=list, max_length=16)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        for name in _REFUSED:
            if isinstance(body, dict) and body.get(name):
                raise ValueError(f"'{name}' is not supported by the local engine. Leave it out.")
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:  # half a surrogate pair, or nested without end
            raise ValueError(f"The request can't be passed on as JSON: {error}.") from None
        return body

    @field_validator("tools")
    @classmethod
    def _functions(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for index, tool in enumerate(tools or []):
            function = tool.get("function")
            if tool.get("type") != "function" or not isinstance(function, dict):
                raise ValueError(f"tool {index} is no function tool: {{'type': 'function', 'function': {{…}}}}")
            name = function.get("name")
            if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
                raise ValueError(f"tool {index} has the name {name!r}; up to 64 letters, digits, '_', '.', '-'")
            if not isinstance(function.get("parameters") or {}, dict):
                raise ValueError(f"tool '{name}': 'parameters' must be a JSON schema object")
        return tools

    def options(self) -> Options:
        """The options for the engine; what the client left out stays out."""
        given: dict[str, Any] = {
            name: value
            for name in Options.__annotations__
            if name not in ("max_tokens", "stop") and (value := getattr(self, name)) is not None
        }
        limit = self.max_completion_tokens or self.max_tokens
        given |= {"stop": [text for text in self.stop if text], "max_tokens": limit}
        return cast(Options, given)
