"""A chat completion request, checked: what OpenAI's API names, and what of it this engine can do."""

import re
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from timestep.models.engine import Options

_REFUSED = ("logprobs", "top_logprobs", "logit_bias", "functions", "function_call", "audio", "web_search_options")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Stops = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value or [])]


class StreamOptions(BaseModel):
    """``stream_options`` of a streamed request."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. Unknown fields are ignored, impossible ones refused by name."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
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
        return body

    @field_validator("tools")
    @classmethod
    def _functions(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for index, tool in enumerate(tools or []):
            function = tool.get("function")
            if tool.get("type") != "function" or not isinstance(function, dict):
                raise ValueError(f"tool {index} is no function tool: {{'type': 'function', 'function': {{…}}}}")
            if not _TOOL_NAME.fullmatch(str(function.get("name"))):
                raise ValueError(f"tool {index} has the name '{function.get('name')}'; letters, digits, '_', '.', '-'")
            if not isinstance(function.get("parameters") or {}, dict):
                raise ValueError(f"tool '{function['name']}': 'parameters' must be a JSON schema object")
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
