"""What the SDK asks of a model, as plain data: for the fingerprint, for the trace, and to ask the model itself."""

import json
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from agents import FunctionTool, Handoff, Model, ModelResponse, ModelSettings, UserError
from agents.items import TResponseInputItem
from agents.models.chatcmpl_converter import Converter
from agents.tool import Tool
from pydantic import BaseModel

# How a call is made, not what is asked: a change of it changes no answer.
_UNASKED = ("retry", "timeout", "include_usage", "preserve_raw_usage", "extra_headers")
# What lets a provider in somewhere, in the configuration of its tools: no part of the trace, and renewed at any time.
_SECRETS = ("authorization", "headers", "domain_secrets")
_URLS = ("server_url",)


@dataclass(frozen=True)
class ModelRequest:
    """The arguments of ``Model.get_response``, under its names; ``more`` are those it only takes as keywords."""

    system_instructions: str | None
    input: str | list[TResponseInputItem]
    model_settings: ModelSettings
    tools: list[Tool]
    output_schema: Any
    handoffs: list[Handoff[Any, Any]]
    tracing: Any
    more: dict[str, Any]

    @classmethod
    def of(cls, arguments: tuple[Any, ...], named: dict[str, Any]) -> "ModelRequest":
        """From a call's arguments: the SDK gives them by name, or in order for a stream."""
        names = [field.name for field in fields(cls)][:-1]
        given = dict(zip(names, arguments, strict=False)) | named
        return cls(**{name: given.pop(name) for name in names}, more=given)

    @property
    def offered(self) -> list[dict[str, Any]]:
        """Tools and handoffs as the model is told of them."""
        handoffs = [dict(Converter.convert_handoff_tool(handoff)) for handoff in self.handoffs]
        return [*map(_tool_json, self.tools), *handoffs]

    @property
    def forced(self) -> bool:
        """Whether a tool call is demanded."""
        return self.model_settings.tool_choice not in (None, "auto", "none")

    def asked(self, model: str) -> dict[str, Any]:
        """All that the answer depends on, as JSON by parts."""
        settings = self.model_settings.to_json_dict()
        if settings["extra_args"] is not None:
            settings["extra_args"].pop("prompt_cache_key", None)  # new with each run, where the SDK makes it up
        schema = self.output_schema
        return {
            "model": model,
            "instructions": self.system_instructions,
            "input": self.input,
            "settings": {name: value for name, value in settings.items() if name not in _UNASKED and value is not None},
            "tools": self.offered,
            "schema": schema.json_schema() if schema and not schema.is_plain_text() else None,
            "more": {name: value for name, value in self.more.items() if value is not None},
        }

    async def whole(self, model: Model) -> ModelResponse:
        """The model's response, in one piece."""
        named = {field.name: getattr(self, field.name) for field in fields(self)[:-1]}
        return await model.get_response(**named, **self.more)

    def streamed(self, model: Model) -> Any:
        """The model's response, event by event."""
        named = {field.name: getattr(self, field.name) for field in fields(self)[:-1]}
        # A chat-completions server counts tokens in a stream only where it is asked to.
        if self.model_settings.include_usage is None:
            named["model_settings"] = replace(self.model_settings, include_usage=True)
        return model.stream_response(*named.values(), **self.more)

    def messages(self, response: ModelResponse | None = None) -> list[dict[str, Any]]:
        """The conversation so far as chat messages, the way a chat-completions server is sent it."""
        items: list[Any] = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else [*self.input]
        if response is not None:
            items += response.to_input_items()
        try:
            messages: list[Any] = Converter.items_to_messages(items)
        except UserError:
            messages = Converter.items_to_messages([item if _is_chat(item) else _told(item) for item in items])
        system = self.system_instructions
        return [{"role": "system", "content": system}] * bool(system) + [dict(message) for message in messages]


def _is_chat(item: Any) -> bool:
    """Whether chat completions have a message for the item; other APIs know more kinds."""
    try:
        Converter.items_to_messages([item])
    except UserError:
        return False
    return True


def _told(item: Any) -> Any:
    return {"role": "assistant", "content": json.dumps(item, default=str)}


def _tool_json(tool: Tool) -> dict[str, Any]:
    if isinstance(tool, FunctionTool):
        try:
            return dict(Converter.tool_to_openai(tool))
        except UserError:  # a tool that only the Responses API knows how to describe
            described = {"name": tool.name, "description": tool.description, "parameters": tool.params_json_schema}
            return {"type": "function", "function": described}
    settings = {name: value for name, value in vars(tool).items() if isinstance(value, str | int | dict | BaseModel)}
    return {"type": tool.name, **{name: _public(_plain(value)) for name, value in settings.items() if name != "name"}}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if isinstance(value, BaseModel) else value


def _public(value: Any) -> Any:
    """The value without secrets, at any depth; of a URL its user and query, where keys are put too."""
    if isinstance(value, list | tuple):
        return [_public(part) for part in value]
    if not isinstance(value, dict):
        return value
    known = {name: _public(part) for name, part in value.items() if str(name).lower() not in _SECRETS}
    return known | {name: _bare(known[name]) for name in _URLS if isinstance(known.get(name), str)}


def _bare(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
