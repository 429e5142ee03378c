"""An engine without weights, for tests, demos and suites: equal requests give equal answers, at once.

It keeps what the API promises (tool choices, schemas, stop sequences, limits) and knows four things to say:
calls of the tools that the last message mentions, with values out of it; JSON that fits the response format; what the
tools answered; and else how many messages there are and what the last one says. 'Count to N' counts, and 'take N
seconds' takes them, for whoever wants a long answer or a slow one.
"""

import json
import re
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Unpack

from timestep.errors import UsageError
from timestep.models.chat import CALL_CLOSE, CALL_OPEN, ChatRenderer, content_text
from timestep.models.generation import Generation, Options
from timestep.models.tools import chosen_tools, format_grammar
from timestep.models.turn import Delta, Turn
from timestep.models.values import Values

NAME = "scripted"  # the base model that this engine is

_TOKEN = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
_COUNT = re.compile(r"\bcount (?:from 1 )?to (\d+)", re.IGNORECASE)
_SECONDS = re.compile(r"\btake (\d+(?:\.\d+)?) seconds", re.IGNORECASE)
_LONGEST = 60  # seconds
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_COMMON = {"get", "set", "the", "and", "for", "with", "tool", "function", "from", "into", "that", "this"}

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


class ScriptedEngine:
    """The base model 'scripted'. ``context_length`` in its own tokens: words and punctuation marks."""

    def __init__(self, context_length: int = 4096) -> None:
        self.context_length = context_length
        self.renderer = ChatRenderer.from_metadata({})

    def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **options: Unpack[Options]
    ) -> Generation:
        """Answer ``messages``; UsageError and NotFoundError as of every engine."""
        offered, must = chosen_tools(tools or (), options.get("tool_choice", "auto"))
        held = format_grammar(options.get("response_format")) is not None  # judged as any engine judges it
        prompt = len(_TOKEN.findall(self.renderer.prompt(messages, tools)))
        asked, results = _asked(messages)
        called = _called(offered, asked, must=must, answered=bool(results))
        if options.get("parallel_tool_calls") is False:
            called = called[:1]
        if called:
            values = Values(asked)
            text = "\n".join(_call(tool, values) for tool in called)
        elif held:
            text = _formatted(options["response_format"] or {}, messages, asked)
        else:
            text = _said(messages, asked, results)
        generation = Generation(must or held, prompt)
        turn = Turn(calls=bool(called), stop=options.get("stop", ()))
        generation.deltas = self._write(text, turn, generation, self._limit(prompt, options.get("max_tokens")), asked)
        return generation

    def _limit(self, prompt: int, wanted: int | None) -> int:
        room = self.context_length - prompt
        if room < 1:
            raise UsageError(
                f"The prompt has {prompt} tokens and the context {self.context_length}. Shorten the conversation, "
                "or serve the model with a longer context (TIMESTEP_CONTEXT_LENGTH)."
            )
        return min(wanted or room, room)

    def _write(
        self, text: str, turn: Turn, generation: Generation, limit: int, asked: str
    ) -> Generator[Delta, None, None]:
        generation.message = turn.message
        started = time.perf_counter()
        pieces = _TOKEN.findall(text)
        generation.timings["prompt_seconds"] = 0.0
        for piece in pieces:
            if generation.completion_tokens >= limit:
                generation.finish_reason = "length"
                break
            yield from _pause(_seconds(asked) / len(pieces))
            generation.completion_tokens += 1
            yield from turn.feed(piece)
            if turn.stopped:
                break
        else:
            generation.finish_reason = "tool_calls" if turn.message.tool_calls else "stop"
        yield from turn.close()
        generation.timings["decode_seconds"] = time.perf_counter() - started


def _asked(messages: Sequence[Message]) -> tuple[str, list[str]]:
    """What the last user message says, and what tools have answered since."""
    results: list[str] = []
    for position in range(len(messages) - 1, -1, -1):
        role, text = messages[position].get("role"), content_text(messages[position], position)
        if role == "user":
            return text, results[::-1]
        if role in ("tool", "function"):
            results.append(text)
    return content_text(messages[-1], len(messages) - 1), results[::-1]


def _called(offered: Sequence[Tool], asked: str, *, must: bool, answered: bool) -> list[Tool]:
    """The tools to call: those that are asked for by name, else by their words; one in any case if it ``must``."""
    if answered and not must:
        return []
    words = set(re.findall(r"\w+", asked))
    named = [tool for tool in offered if tool["function"]["name"] in words]
    mentioned = named or [tool for tool in offered if _words(tool["function"]) & {word.lower() for word in words}]
    return mentioned or (list(offered[:1]) if must else [])


def _words(function: Mapping[str, Any]) -> set[str]:
    name = {word.lower() for word in _WORD.findall(function["name"])}
    described = {word.lower() for word in _WORD.findall(function.get("description") or "") if len(word) > 5}
    return {word for word in name | described if len(word) > 2} - _COMMON


def _call(tool: Tool, values: Values) -> str:
    function = tool["function"]
    arguments = values.fit({"type": "object", **(function.get("parameters") or {})})
    body = {"name": function["name"], "arguments": arguments}
    return f"{CALL_OPEN}\n{json.dumps(body, ensure_ascii=False)}\n{CALL_CLOSE}"


def _formatted(form: Mapping[str, Any], messages: Sequence[Message], asked: str) -> str:
    values = Values(asked)
    if form["type"] == "json_schema":
        return json.dumps(values.fit(form["json_schema"]["schema"]), ensure_ascii=False)
    said = " ".join(content_text(message, position) for position, message in enumerate(messages))
    keys = [word for word in Values(said).quoted if word.isidentifier()] or ["answer"]
    return json.dumps(dict.fromkeys(keys, asked), ensure_ascii=False)


def _said(messages: Sequence[Message], asked: str, results: Sequence[str]) -> str:
    if results:
        return f"The tools say: {'; '.join(results)}"
    if count := _COUNT.search(asked):
        return " ".join(map(str, range(1, int(count[1]) + 1)))
    return f"Message {len(messages)} says: {asked}"


def _seconds(asked: str) -> float:
    wanted = _SECONDS.search(asked)
    return min(float(wanted[1]), _LONGEST) if wanted else 0.0


def _pause(seconds: float) -> Generator[Delta, None, None]:
    """Wait, with a chance to leave ten times a second."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        yield {}
        time.sleep(min(left, 0.1))
