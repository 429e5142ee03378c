"""A request of the Responses API, checked: what is not implemented is refused by its name, not ignored."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from timestep.agents.responses.items import check_items
from timestep.errors import NotFoundError, NotSupportedError, ParameterError
from timestep.models.routing import is_file

AGENT = "agent/"  # of a model's name that is a registered agent's
# Beside a step's request: how many of its items were said before, and the last one's number in the conversation.
EARLIER, BEHIND = "timestep_earlier", "timestep_behind"
LOGPROBS = "message.output_text.logprobs"

_REFUSED = (
    *("prompt", "max_tool_calls", "moderation", "image", "access_programs"),
    *("context_management", "prompt_cache_options"),
)
_UNKNOWN = "is no parameter of the Responses API that is known here. Leave it out."
_OF_CLIENTS = ("stream", "background", "previous_response_id", "conversation")


def _metadata(value: dict[str, str]) -> dict[str, str]:
    if len(value) > 16 or any(len(key) > 64 or len(text) > 512 for key, text in value.items()):
        raise ValueError("at most 16 pairs, of 64 characters in a key and 512 in a value")
    if any("\0" in part for pair in value.items() for part in pair):
        raise ValueError("no text may hold a NUL character")
    return value


Metadata = Annotated[dict[str, str], AfterValidator(_metadata)]


class Format(BaseModel):
    """``text.format``: plain text, any JSON, or JSON of a schema."""

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class Text(BaseModel):
    """``text`` of a request."""

    model_config = ConfigDict(extra="forbid")

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(BaseModel):
    """``reasoning`` of a request; only providers' models know an effort."""

    model_config = ConfigDict(extra="forbid")

    effort: str | None = None
    summary: None = None
    generate_summary: None = None


class FunctionTool(BaseModel):
    """A function that the client runs."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ConversationId(BaseModel):
    """The conversation that a response is part of."""

    id: str


class ResponseRequest(BaseModel):
    """The body of POST /v1/responses, but for what is refused."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="A name of /v1/models, a provider's model by its prefix, or agent/NAME.")
    input: str | list[dict[str, Any]] = Field(default_factory=list, description="Text, or input items.")
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationId | None = None
    # Said of the request, and nothing that an answer depends on.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    stream_options: dict[str, Any] | None = None

    # How many of the items, the first ones, were said before this request: of a step, whose input has all of them.
    _earlier: int = PrivateAttr(0)
    _behind: int | None = PrivateAttr(None)

    @property
    def agent(self) -> str | None:
        """The registered agent that answers, if one does."""
        return self.model.removeprefix(AGENT) if self.model.startswith(AGENT) else None

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id."""
        named = self.conversation
        return named.id if isinstance(named, ConversationId) else named

    @property
    def behind(self) -> int | None:
        """The number of the conversation's last item that a step's answers; None where it isn't known."""
        return self._behind

    @property
    def added(self) -> list[dict[str, Any]]:
        """The items that came with this request, of a step's."""
        return self.input[self._earlier :] if isinstance(self.input, list) else []


def checked(body: dict[str, Any]) -> ResponseRequest:
    """The request.

    Raises:
        ParameterError: a parameter whose value can't be meant; it is named.
        NotSupportedError: one that is not implemented.
    """
    body = {name: value for name, value in body.items() if value is not None}  # null is as good as nothing
    for name in _REFUSED:
        if name in body:
            raise NotSupportedError(name)
    _refuse_tools(body.get("tools"))
    try:
        json.dumps(body, ensure_ascii=False).encode()
        request = ResponseRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper() and part not in _KINDS)
        raise ParameterError(where, _why(first)) from None
    except (UnicodeEncodeError, RecursionError):
        raise ParameterError("input", "holds half a surrogate pair, or is nested without end.") from None
    for name in request.model_extra or {}:
        raise NotSupportedError(name, _UNKNOWN)
    if is_file(request.model):  # which the service's own flows may name, and no client
        raise NotFoundError("model", request.model)
    _check_together(request)
    if not isinstance(request.input, str):
        check_items(request.input)
    return request


def of_step(body: dict[str, Any]) -> ResponseRequest:
    """A request as a step has it. Raises as :func:`checked`."""
    request = checked({name: value for name, value in body.items() if name not in (EARLIER, BEHIND)})
    request._earlier, request._behind = body.get(EARLIER, 0), body.get(BEHIND)
    return request


def check(body: dict[str, Any]) -> None:
    """Refuse a request that a step can't answer by itself, as the line of a batch. Raises as :func:`checked`."""
    if not isinstance(body, dict):
        raise ParameterError("body", "is no JSON object.")
    for name in _OF_CLIENTS:
        if body.get(name):
            raise NotSupportedError(name, "is not supported in a batch. Leave it out.")
    checked(body)


# How pydantic names the kinds of a union within an error's place.
_KINDS = ("str", "list[dict[str,any]]", "dict[str,any]")


def _why(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    return f"is missing: {message.lower()}." if error["type"] == "missing" else f"can't be that: {message}."


def _refuse_tools(tools: Any) -> None:
    for index, tool in enumerate(tools if isinstance(tools, list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise NotSupportedError(
                f"tools[{index}].type", f"is {json.dumps(kind)}. Only functions, which the client runs, are supported."
            )


def _check_together(request: ResponseRequest) -> None:
    if request.previous_response_id and request.conversation:
        raise ParameterError("previous_response_id", "and 'conversation' can't be given together. Give one of them.")
    if request.background and request.store is False:
        raise ParameterError("store", "can't be false with 'background': what isn't stored can't be asked for later.")
    for included in request.include or []:
        if included != LOGPROBS:
            raise NotSupportedError("include", f"holds '{included}'; only '{LOGPROBS}' is supported.")
    if request.agent is None and request.top_logprobs and LOGPROBS not in (request.include or []):
        raise ParameterError("top_logprobs", f"needs 'include' to hold '{LOGPROBS}'.")
    if request.stream_options and request.stream_options != {"include_obfuscation": False}:
        raise NotSupportedError("stream_options", "is only supported as {'include_obfuscation': false}.")
    made = request.text and request.text.format
    if made and made.type == "json_schema" and (made.name is None or made.schema_ is None):
        raise ParameterError("text.format", "of type 'json_schema' needs a name and a schema.")
    if request.agent is not None:
        _check_agent(request)
    _check_choice(request)


def _check_agent(request: ResponseRequest) -> None:
    """What an agent has of its own, and a request can't say anew."""
    if request.tools:
        raise NotSupportedError("tools", "is not supported with an agent, which has its own. Leave it out.")
    if request.text and request.text.format and request.text.format.type != "text":
        raise NotSupportedError("text.format", "is not supported with an agent, which has its own output type.")
    if isinstance(request.tool_choice, dict):
        raise NotSupportedError("tool_choice", "is 'auto', 'none' or 'required' with an agent.")
    given: dict[str, Any] = {
        "top_logprobs": request.top_logprobs,
        "reasoning": request.reasoning,
        "truncation": request.truncation,
    }
    given |= {"include": request.include, "text.verbosity": request.text and request.text.verbosity}
    for name, value in given.items():
        if value not in (None, [], "disabled", 0):
            raise NotSupportedError(name, "is not supported with an agent. Leave it out.")
    if request.parallel_tool_calls is False:
        raise NotSupportedError("parallel_tool_calls", "can't be false with an agent, which has its own settings.")


def _check_choice(request: ResponseRequest) -> None:
    choice = request.tool_choice
    if choice == "required" and not request.tools and request.agent is None:
        raise ParameterError("tool_choice", "is 'required', and there are no tools. Give some, or leave it out.")
    if not isinstance(choice, dict):
        return
    names = {tool.name for tool in request.tools or []}
    if choice.get("type") == "function":
        asked = [choice]
    elif choice.get("type") == "allowed_tools":
        asked = choice.get("tools") or []
        if choice.get("mode") not in ("auto", "required") or not isinstance(asked, list) or not asked:
            raise ParameterError("tool_choice", "of 'allowed_tools' needs a mode, 'auto' or 'required', and tools.")
    else:
        raise NotSupportedError("tool_choice.type", f"is {json.dumps(choice.get('type'))}, which is not supported.")
    for tool in asked:
        name = tool.get("name") if isinstance(tool, dict) else None
        if name not in names:
            raise ParameterError("tool_choice", f"names {json.dumps(name)}, which is none of the tools.")
