"""Conversations to learn from: read from an OpenAI fine-tuning JSONL file or from traces, split, packed.

Rendering is the served model's own (``timestep.models.chat``); nothing here knows a chat template.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from storage.traces import TraceStore
from timestep.errors import DatasetError, TrainingError
from timestep.models.chat import ChatRenderer
from training.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")


class Conversation(BaseModel):
    """OpenAI chat messages with the tools that were offered; ``source`` says where it was found."""

    model_config = ConfigDict(frozen=True)

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    source: str = ""

    def digest(self, seed: int = 0) -> str:
        """Hash of the content and ``seed``; the source does not count."""
        content = json.dumps([seed, self.messages, self.tools], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class Loaded(BaseModel):
    """The good conversations of a dataset, and one sentence for each line that was skipped."""

    conversations: list[Conversation]
    skipped: list[str] = []


class Rendered(NamedTuple):
    """A conversation as the model reads it, and where the assistant's turns lie in its tokens."""

    text: str
    answers: list[range]


class Packed(BaseModel):
    """Windows of exactly ``context_length`` tokens, each of whole conversations and padding.

    ``masks`` says for each token of each window, ``1`` or ``0``, whether it is learnt (the assistant's are)
    or only read. ``tokens`` counts those of the conversations, ``learnt`` those that are learnt, ``cut``
    the conversations cut to fit a window.
    """

    context_length: int
    windows: list[str]
    masks: list[str]
    padding: str
    first_token: str
    tokens: int
    learnt: int
    cut: int

    def text(self, seed: int) -> str:
        """The text for llama-finetune, its windows in the order that ``seed`` gives.

        llama.cpp makes ``(tokens - context - 1) / context`` windows, so one window of padding and one
        token more follow, which are not trained on. It also writes the beginning-of-sequence token,
        where the model has one, in front of the file: ours is left out there.
        """
        windows = "".join(_shuffled(self.windows, seed))
        return windows.removeprefix(self.first_token) + self.padding * (self.context_length + 1)

    def mask(self, seed: int) -> str:
        """One ``1`` or ``0`` for each token of ``text(seed)``."""
        return "".join(_shuffled(self.masks, seed)) + "0" * (self.context_length + 1)


def _shuffled(windows: list[str], seed: int) -> list[str]:
    return random.Random(seed).sample(windows, len(windows))


async def load_jsonl(path: Path, name: str | None = None, *, skip_bad: bool = False) -> Loaded:
    """Read OpenAI fine-tuning JSONL: one ``{"messages": […], "tools": […]}`` a line; blank lines count for nothing.

    The first bad line raises DatasetError with its number; with ``skip_bad`` it is left out and reported.
    """
    return await asyncio.to_thread(_load_jsonl, path, name or path.name, skip_bad)


def _load_jsonl(path: Path, name: str, skip_bad: bool) -> Loaded:
    loaded = Loaded(conversations=[])
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DatasetError(name, f"{error.strerror}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            loaded.conversations.append(_parse(line, f"{name}:{number}"))
        except ValueError as error:
            bad = DatasetError(name, str(error), number)
            if not skip_bad:
                raise bad from None
            loaded.skipped.append(str(bad))
    if not loaded.conversations:
        raise DatasetError(name, "it has no good line." if loaded.skipped else "it is empty.")
    return loaded


async def load_traces(
    traces: TraceStore, agent: str, since: datetime | None = None, until: datetime | None = None
) -> Loaded:
    """The agent's recorded thinking: completed inference steps, as they were served.

    A trace that holds no usable conversation is skipped and reported; none at all raises DatasetError.
    """
    loaded = Loaded(conversations=[])
    async for key, trace in traces.list(agent, since=since, until=until):
        if trace.get("status") != "completed" or trace.get("mode") != "inference":
            continue
        try:
            loaded.conversations.append(_conversation(trace, key))
        except ValueError as error:
            loaded.skipped.append(f"Trace '{key}': {error}")
    if not loaded.conversations:
        raise DatasetError("traces", f"the agent '{agent}' has no completed steps to learn from.")
    return loaded


def _parse(line: bytes, source: str) -> Conversation:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg} at column {error.colno}).") from None
    if not isinstance(value, dict):
        raise ValueError('it is not an object like {"messages": […]}.')
    return _conversation(value, source)


def _conversation(value: dict[str, Any], source: str) -> Conversation:
    """Checked conversation up to its last assistant message; ValueError says what is wrong, in a sentence."""
    messages, tools = value.get("messages"), value.get("tools")
    if not isinstance(messages, list) or not messages:
        raise ValueError("it has no 'messages'.")
    for position, message in enumerate(messages, 1):
        if why := _wrong_message(message):
            raise ValueError(f"message {position} {why}.")
    if tools is not None and not (isinstance(tools, list) and all(map(_is_tool, tools))):
        raise ValueError('\'tools\' is not a list of {"type": "function", "function": {"name": …}}.')
    last = max((k for k, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise ValueError("it has no assistant message to learn from.")
    return Conversation(messages=messages[: last + 1], tools=tools or None, source=source)


def _wrong_message(message: Any) -> str | None:
    if not isinstance(message, dict):
        return "is not an object"
    if (role := message.get("role")) not in ROLES:
        return f"has the role '{role}', which is none of {', '.join(ROLES)}"
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
        return "has a tool call without a name or with arguments that are not JSON text"
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return None
    if not isinstance(content, str) and not (content is None and role == "assistant" and calls):
        return "has no text content"
    return None


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    try:
        return isinstance(json.loads(function["arguments"]), dict)
    except (KeyError, TypeError, ValueError):
        return False


def split(
    conversations: list[Conversation], validation_split: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(to train on, held out). Which are held out depends on their content and ``seed`` alone.

    Equal conversations stay on one side, and with two different ones and a split above 0, each side has one.
    """
    digests = sorted({conversation.digest(seed) for conversation in conversations})
    wanted = min(max(round(len(digests) * validation_split), 1), len(digests) - 1) if validation_split > 0 else 0
    chosen = set(digests[:wanted])
    held_out = [conversation for conversation in conversations if conversation.digest(seed) in chosen]
    return [conversation for conversation in conversations if conversation.digest(seed) not in chosen], held_out


def render(conversation: Conversation, renderer: ChatRenderer, tokenize: Callable[[str], list[int]]) -> Rendered:
    """The conversation as it is served, and its assistant's turns, each up to its end-of-turn token.

    ``tokenize`` gives the tokens of a sequence, its first token included. UsageError: it can't be rendered.
    """
    messages, tools = conversation.messages, conversation.tools
    answers = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant" and turn:
            start = len(tokenize(renderer.prompt(messages[:turn], tools)))
            answers.append(range(start, len(tokenize(renderer.conversation(messages[: turn + 1], tools).rstrip()))))
    return Rendered(renderer.conversation(messages, tools), answers)


def pack(rendered: Iterable[Rendered], tokenizer: Tokenizer, context_length: int, dataset: str) -> Packed:
    """Fill windows with whole conversations, the longest first, each where it fits best; pad the rest.

    ``dataset`` names the dataset in errors. Raises DatasetError where all texts together are shorter than
    one window or no answer lies within one, TrainingError where the tokenizer joins neighbouring texts.
    """
    sized, cut = [], 0
    for text, answers in rendered:
        whole = tokenizer.first_token + text
        fitting, size = _fit(whole, tokenizer, context_length)
        cut += fitting != whole
        learnt = {position for answer in answers for position in answer}
        sized.append((size, fitting, "".join("01"[position in learnt] for position in range(size))))
    _check_amount(
        sum(size for size, _, _ in sized), sum(mask.count("1") for _, _, mask in sized), context_length, dataset
    )
    windows: list[tuple[int, str, str]] = []
    for size, text, mask in sorted(sized, reverse=True):
        fits = [(context_length - used - size, place) for place, (used, _, _) in enumerate(windows)]
        place = min((fit for fit in fits if fit[0] >= 0), default=(0, len(windows)))[1]
        if place == len(windows):
            windows.append((0, "", ""))
        before = windows[place]
        windows[place] = (before[0] + size, before[1] + text, before[2] + mask)
    packed = Packed(
        context_length=context_length,
        windows=[text + tokenizer.padding * (context_length - used) for used, text, _ in windows],
        masks=[mask.ljust(context_length, "0") for _, _, mask in windows],
        padding=tokenizer.padding,
        first_token=tokenizer.first_token,
        tokens=sum(size for size, _, _ in sized),
        learnt=sum(mask.count("1") for _, _, mask in sized),
        cut=cut,
    )
    _verify(packed, tokenizer)
    return packed


def _check_amount(tokens: int, learnt: int, context_length: int, dataset: str) -> None:
    if tokens < context_length:
        raise DatasetError(
            dataset,
            f"its training conversations have {tokens} tokens together, fewer than one context of {context_length}. "
            "Add conversations, or lower the context length.",
        )
    if not learnt:
        raise DatasetError(
            dataset, f"no assistant's answer begins within a context of {context_length}. Raise the context length."
        )


def _fit(text: str, tokenizer: Tokenizer, limit: int) -> tuple[str, int]:
    """(the longest beginning of ``text`` that has at most ``limit`` tokens, its tokens)."""
    size = len(tokenizer(text))
    if size <= limit:
        return text, size
    end = _last_true(lambda length: len(tokenizer(text[:length])) <= limit, len(text))
    return text[:end], len(tokenizer(text[:end]))


def _last_true(holds: Callable[[int], bool], limit: int) -> int:
    """Largest number up to ``limit`` for which a falling condition still holds."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _verify(packed: Packed, tokenizer: Tokenizer) -> None:
    size, tokens = packed.context_length, tokenizer(packed.first_token + packed.text(0))
    for number, window in enumerate(_shuffled(packed.windows, 0)):
        if tokens[number * size : (number + 1) * size] != tokenizer(window):
            raise TrainingError("This model's tokenizer joins neighbouring conversations: they can't be packed.")
