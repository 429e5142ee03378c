"""The one chat renderer: messages to the text a model reads, when it is served and when it is trained.

Three rules make the tokens of both equal. Every assistant turn is stripped, so that the text after a prompt never
melts into the prompt's last token. JSON is written one way (separators ', ' and ': '), however it came. And text that
the tokenizer would read as a special token, or that imitates the tool convention's tags, gets a space after its first
character inside any message ('<|im_end|>' -> '< |im_end|>'): nobody's text can forge a turn or a tool's result.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, Field

from timestep.errors import UsageError
from timestep.models.gguf import GGUFHeader

Message = Mapping[str, Any]

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
_TAGS = (CALL_OPEN, CALL_CLOSE, "<tool_response>", "</tool_response>", "<tools>", "</tools>")
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_TOOLS = """You may call functions to help with the user's request. They are listed as JSON within <tools></tools>:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments within <tool_call></tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>"""


class ToolCall(BaseModel):
    """A call the model made; ``arguments`` is JSON text, as in OpenAI's API."""

    id: str = Field(default_factory=lambda: f"call_{secrets.token_hex(12)}")
    name: str
    arguments: str

    def wire(self) -> dict[str, Any]:
        """The call in OpenAI's shape."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class AssistantMessage(BaseModel):
    """An assistant's turn: text, calls, or both."""

    content: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)

    def wire(self) -> dict[str, Any]:
        """The message in OpenAI's shape."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.wire() for call in self.tool_calls]
        return message


class ChatRenderer:
    """Renders conversations with a model's own template (ChatML where it has none).

    Templates only ever see system, user and assistant messages of plain text: tools are described in the system
    message, called as ``<tool_call>`` JSON and answered as ``<tool_response>`` in a user turn, for every model alike.
    """

    def __init__(self, template: str, *, special: Iterable[str] = (), bos: str = "", eos: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _json
        environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.now().strftime(form))
        self._template = environment.from_string(template)
        self._tokens = {"bos_token": bos, "eos_token": eos}
        texts = sorted({*special, *_TAGS}, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(text) for text in texts if len(text) > 1))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "ChatRenderer":
        """From GGUF metadata. Without the token list (llama.cpp gives only scalars) ChatML's tokens are guarded."""
        tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens") or ()
        kinds: Sequence[int] = metadata.get("tokenizer.ggml.token_type") or ()
        special = [token for token, kind in zip(tokens, kinds, strict=False) if kind in (2, 3)]  # unknown, control

        def token(name: str) -> str:
            index = int(metadata.get(f"tokenizer.ggml.{name}_token_id", -1))
            return tokens[index] if 0 <= index < len(tokens) else ""

        # A tokenizer that adds the first token by itself must not find it in the text once more.
        adds = str(metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama"))
        return cls(
            metadata.get("tokenizer.chat_template") or _CHATML,
            special=special or _CHATML_TOKENS,
            bos="" if adds.lower() == "true" else token("bos"),
            eos=token("eos"),
        )

    @classmethod
    def from_file(cls, path: Path) -> "ChatRenderer":
        """From a GGUF file. ModelFileError where it is none."""
        return cls.from_metadata(GGUFHeader.read(path).metadata)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> str:
        """What the model reads before its next turn. UsageError: a message that can't be rendered."""
        return self._render(messages, tools, generate=True)

    def conversation(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> str:
        """The whole, closed conversation: begins with ``prompt(messages[:k])`` for every assistant turn ``k``.

        UsageError: a message that can't be rendered, or a template that rewrites turns once they are past.
        """
        text = self._render(messages, tools, generate=False)
        for index, message in enumerate(messages):
            if (
                message.get("role") == "assistant"
                and index
                and not text.startswith(self.prompt(messages[:index], tools))
            ):
                raise UsageError(
                    "This model's chat template rewrites past turns, so it can't be trained on whole conversations."
                )
        return text

    def _render(self, messages: Sequence[Message], tools: Sequence[Message] | None, *, generate: bool) -> str:
        if not messages:
            raise UsageError("A conversation needs at least one message, and 'messages' is empty.")
        try:
            return self._template.render(
                messages=self._plain(messages, tools or ()), add_generation_prompt=generate, **self._tokens
            )
        except TemplateError as error:
            raise UsageError(f"The model's chat template refuses these messages: {error}.") from None

    def _plain(self, messages: Sequence[Message], tools: Sequence[Message]) -> list[dict[str, str]]:
        """The messages as the template sees them: three roles, text only."""
        plain: list[dict[str, str]] = []
        for position, message in enumerate(messages):
            role, text = message.get("role"), self._guard(content_text(message, position))
            if role in ("system", "developer"):
                plain.append({"role": "system", "content": text})
            elif role == "user":
                plain.append({"role": "user", "content": text})
            elif role == "assistant":
                parts = [text.strip(), *(self._call(call) for call in message.get("tool_calls") or ())]
                plain.append({"role": "assistant", "content": "\n".join(part for part in parts if part)})
            elif role in ("tool", "function"):
                answer = f"<tool_response>\n{text}\n</tool_response>"
                if position and messages[position - 1].get("role") == role:  # the answers to one turn are one turn
                    plain[-1]["content"] += f"\n{answer}"
                else:
                    plain.append({"role": "user", "content": answer})
            else:
                raise UsageError(f"Message {position} has role '{role}'. Roles: system, user, assistant, tool.")
        return self._describe(tools, plain) if tools else plain

    def _describe(self, tools: Sequence[Message], plain: list[dict[str, str]]) -> list[dict[str, str]]:
        listing = _TOOLS.format(tools="\n".join(self._guard(_json(_described(tool))) for tool in tools))
        if plain[0]["role"] == "system":
            return [{"role": "system", "content": f"{plain[0]['content']}\n\n{listing}"}, *plain[1:]]
        return [{"role": "system", "content": listing}, *plain]

    def _call(self, call: Message) -> str:
        function = call.get("function") or {}
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = _load(arguments)
        body = self._guard(_json({"name": function.get("name"), "arguments": arguments}))
        return f"{CALL_OPEN}\n{body}\n{CALL_CLOSE}"

    def _guard(self, text: str) -> str:
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def texts_of(messages: Iterable[Message]) -> Iterator[str]:
    """The messages' own texts, unjudged: what a prompt of them has at least."""
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            text = part.get("text") if isinstance(part, Mapping) else None
            if isinstance(text, str):
                yield text


def content_text(message: Message, position: int) -> str:
    """The text of a message whose content is a string, None, or a list of text parts. UsageError otherwise."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text", part.get("refusal")), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UsageError(f"Message {position} has a part of type '{kind}'. This model reads text only.")
        texts.append(part.get("text", part.get("refusal")))
    return "\n".join(texts)


def _described(tool: Message) -> dict[str, Any]:
    """What the model is told of a tool, in one order, without what only the API or the grammar reads.

    Each tool stands in every prompt: what is left out here is saved in every call and every epoch.
    """
    function = tool["function"]
    known = {key: function[key] for key in ("name", "description", "parameters") if function.get(key)}
    if isinstance(known.get("parameters"), Mapping):
        known["parameters"] = {k: v for k, v in known["parameters"].items() if k != "additionalProperties"}
    return known


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _load(text: str) -> Any:
    """JSON where ``text`` is some, else the text itself: a broken call is still shown to the model."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _refuse(why: str) -> None:
    raise TemplateError(why)
