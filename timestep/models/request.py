"""Requests, checked: what OpenAI's API names, and what of it this engine can do. The rest is refused by name."""

import json
import re
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from timestep.models.generation import Generation, Options

MOST_CHOICES = 128
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _shaped(message: dict[str, Any]) -> dict[str, Any]:
    """What a template would trip over; the renderer judges roles and parts itself."""
    content, calls = message.get("content"), message.get("tool_calls")
    if not isinstance(content, str | list | None):
        raise ValueError("'content' must be text, a list of text parts, or null")
    if not (calls is None or (isinstance(calls, list) and all(map(_is_call, calls)))):
        raise ValueError("'tool_calls' must be a list of calls: {'function': {'name': …, 'arguments': …}}")
    if message.get("function_call") is not None:
        raise ValueError("'function_call' is not supported. Say it as 'tool_calls'")
    return message


def _is_call(call: Any) -> bool:
    match call:
        case {"function": {"name": str()}}:
            return True
    return False


Message = Annotated[dict[str, Any], AfterValidator(_shaped)]
Stops = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value or [])]


def _texts(given: Any) -> list[Any]:
    """Each of the texts, or of the lists of tokens, of a prompt or an input."""
    given = "" if given is None else given
    alone = isinstance(given, str) or (isinstance(given, list) and given and all(map(_is_token, given)))
    every = [given] if alone else given
    if not isinstance(every, list) or not all(map(_is_text, every)):
        raise ValueError("must be a text, its tokens, or a list of either")
    return every


def _is_text(one: Any) -> bool:
    return isinstance(one, str) or (isinstance(one, list) and all(map(_is_token, one)))


def _is_token(one: Any) -> bool:
    return type(one) is int and 0 <= one < 2**31


_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_EITHER = {"anyOf": [{"type": "string"}, _TOKENS]}
Texts = Annotated[
    list[str | list[int]],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [*_EITHER["anyOf"], {"type": "array", "items": _EITHER, "minItems": 1}]}),
]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Body(BaseModel):
    """The body of a request: what is no field of it is refused by name, unless it is null.

    The fields of this class change no answer; clients send them, and OpenAI's API has them everywhere.
    """

    model_config = ConfigDict(extra="forbid")

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, body: Any) -> Any:
        if isinstance(body, bytes):  # as it is where its content type is another
            raise ValueError("The body is no JSON. Send it with the content type application/json.")
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:  # half a surrogate pair, or nested without end
            raise ValueError(f"The request can't be passed on as JSON: {error}.") from None
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None or name in cls.model_fields}


class StreamOptions(BaseModel):
    """``stream_options`` of a streamed request. Nothing is obfuscated here."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class GenerationRequest(Body):
    """What chats and texts have in common."""

    model: str
    stop: Stops = Field(default_factory=list, max_length=16)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Token, Bias] | None = Field(None, max_length=1024)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _streamed(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only for requests with 'stream': true.")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event of the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def choices(self, first: Generation) -> list[Generation]:
        """The ``n`` choices, of which ``first`` is one: alike but for the seed, which counts up."""
        seeds = [None if self.seed is None else self.seed + index for index in range(1, self.n or 1)]
        return [first, *map(first.again, seeds)]

    def options(self) -> Options:
        """How to generate the first choice; what the client left out stays out."""
        own = ("stop", "max_tokens", "logprobs")
        names = [name for name in Options.__annotations__ if name not in own]
        given = {name: value for name in names if (value := getattr(self, name, None)) is not None}
        return cast(Options, {**given, "stop": [text for text in self.stop if text], "max_tokens": self.max_tokens})


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None  # judged together with the tools
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    modalities: list[Literal["text"]] | None = None
    # They change no answer either.
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

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

    @model_validator(mode="after")
    def _counted(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' is only for requests with 'logprobs': true.")
        return self

    def options(self) -> Options:
        """As of every request."""
        options = super().options()
        options["max_tokens"] = self.max_completion_tokens or self.max_tokens
        if self.logprobs:
            options["logprobs"] = self.top_logprobs or 0
        return options


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Texts = Field([""], min_length=1, validate_default=True)
    max_tokens: int | None = Field(None, ge=0)
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _possible(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n or 1):
            raise ValueError("'best_of' is not supported beyond 'n'. Leave it out.")
        if len(self.prompt) * (self.n or 1) > MOST_CHOICES:
            raise ValueError(f"'prompt' and 'n' make more than {MOST_CHOICES} choices.")
        return self

    def options(self) -> Options:
        """As of every request."""
        options = super().options()
        options["max_tokens"] = 16 if self.max_tokens is None else self.max_tokens
        if self.logprobs is not None:
            options["logprobs"] = self.logprobs
        return options


class EmbeddingRequest(Body):
    """The body of POST /v1/embeddings. ``model`` left out: the one that the settings name."""

    model: str | None = None
    input: Texts = Field(min_length=1, max_length=2048)
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] | None = None

    @field_validator("input")
    @classmethod
    def _filled(cls, given: list[str | list[int]]) -> list[str | list[int]]:
        if not all(given):
            raise ValueError("must have no empty text")
        return given
