"""An engine without weights, for tests, demos and suites: equal requests give equal answers, at once.

It keeps what the API promises (tool choices, schemas, stop sequences, limits) and knows four things to say:
calls of the tools that the last message mentions, with values out of it; JSON that fits the response format; what the
tools answered; and else how many messages there are and what the last one says. 'Count to N' counts, and 'take N
seconds' takes them, for whoever wants a long answer or a slow one.
"""

import json
import re
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from timestep.errors import ContextLengthError, UsageError
from timestep.models.chat import CALL_CLOSE, CALL_OPEN, ChatRenderer, content_text, texts_of
from timestep.models.generation import LONGEST_TOKEN, Generation, Options, refuse_long
from timestep.models.tools import calls_grammar, chosen_tools, format_grammar
from timestep.models.turn import Delta, Turn
from timestep.models.values import Values

_TOKEN = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
_COUNT = re.compile(r"\bcount (?:from 1 )?to (\d+)", re.IGNORECASE)
_SECONDS = re.compile(r"\btake (\d+(?:\.\d+)?) seconds", re.IGNORECASE)
_LONGEST = 60  # seconds
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_COMMON = {"get", "set", "the", "and", "for", "with", "tool", "function", "from", "into", "that", "this"}

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


class ScriptedEngine:
    """The base model 'scripted'. ``context_length`` in its own tokens: words and punctuation marks.

    It is certain of what it says: sampling options change nothing, and every log probability is 0.
    """

    def __init__(self, context_length: int = 4096) -> None:
        self.context_length = context_length
        self.renderer = ChatRenderer.from_metadata({})

    def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **options: Unpack[Options]
    ) -> Generation:
        """Answer ``messages``; UsageError and NotFoundError as of every engine."""
        refuse_long(texts_of(messages), self.context_length)
        offered, must = chosen_tools(tools or (), options.get("tool_choice", "auto"))
        # Schemas are judged as any engine judges them.
        held = format_grammar(options.get("response_format")) is not None
        if offered:
            calls_grammar(offered, parallel=True)
        prompt = self.renderer.prompt(messages, tools)
        asked, results = _asked(messages)
        called = _called(offered, asked, must=must, answered=bool(results))
        if options.get("parallel_tool_calls") is False:
            called = called[:1]
        if called:
            values = Values(asked, self.context_length)
            text = "\n".join(_call(tool, values) for tool in called)
        elif held:
            text = _formatted(options["response_format"] or {}, messages, Values(asked, self.context_length))
        else:
            text = self._said(len(messages), asked, results)
        tokens = len(_TOKEN.findall(prompt))
        return self._begin(tokens, text, asked, options, calls=bool(called), forced=must or held)

    def complete(self, prompt: str | Sequence[int], *, echo: bool = False, **options: Unpack[Options]) -> Generation:
        """Answer a text, or its tokens, which in numbers are code points, as if it were a message."""
        prompt = prompt if isinstance(prompt, str) else _characters(prompt[: self.context_length * LONGEST_TOKEN])
        refuse_long([prompt], self.context_length)
        text = self._said(1, prompt, ())
        return self._begin(len(_TOKEN.findall(prompt)), text, prompt, options, echo=echo)

    def _begin(self, prompt_tokens: int, text: str, asked: str, options: Options, **how: bool) -> Generation:
        room, wanted = self.context_length - prompt_tokens, options.get("max_tokens")
        if room < 1:
            raise ContextLengthError(prompt_tokens, self.context_length)
        tokens = _TOKEN.findall(text)
        said = tokens[: room if wanted is None else min(wanted, room)]
        script = _Script(prompt_tokens, said, len(said) == len(tokens), asked, options, **how)
        return script.generation()

    def _said(self, messages: int, asked: str, results: Sequence[str]) -> str:
        if results:
            return f"The tools say: {'; '.join(results)}"
        if count := _COUNT.search(asked):
            # One more than there is room for is as good as all of them.
            last = int(count[1]) if len(count[1]) < 10 else self.context_length
            return " ".join(map(str, range(1, min(last, self.context_length) + 1)))
        return f"Message {messages} says: {asked}"


@dataclass(frozen=True)
class _Script:
    """What is said to a request: ``said`` are its tokens, ``whole``: there is no more to say."""

    prompt_tokens: int
    said: Sequence[str]
    whole: bool
    asked: str
    options: Options
    calls: bool = False
    forced: bool = False
    echo: bool = False

    def generation(self) -> Generation:
        """It, once more at each call."""
        generation = Generation(self.forced, self.prompt_tokens)
        turn = Turn(calls=self.calls, stop=self.options.get("stop", ()))
        likeliest = self.options.get("logprobs")
        generation.message = turn.message
        generation.logprobs = None if likeliest is None else []
        pause = _seconds(self.asked) / max(len(self.said), 1)
        generation.deltas = _shown(_write(self.said, turn, generation, pause, whole=self.whole), generation, likeliest)
        if self.echo:
            turn.message.content = self.asked
            generation.deltas = _echoed(self.asked, generation, generation.deltas, likeliest)
        generation.again = lambda seed: self.generation()
        return generation


def _write(
    said: Sequence[str], turn: Turn, generation: Generation, pause: float, *, whole: bool
) -> Generator[Delta, None, None]:
    """Say these tokens; ``whole``: there is no more to say."""
    started = time.perf_counter()
    generation.timings["prompt_seconds"] = 0.0
    for token in said:
        yield from _wait(pause)
        generation.completion_tokens += 1
        yield from turn.feed(token)
        if turn.stopped:
            break
    yield from turn.close()
    ended = "tool_calls" if turn.message.tool_calls else "stop"
    generation.finish_reason = ended if whole or turn.stopped else "length"
    generation.timings["decode_seconds"] = time.perf_counter() - started


def _shown(deltas: Iterable[Delta], generation: Generation, likeliest: int | None) -> Generator[Delta, None, None]:
    """The deltas, with the log probabilities of their text where they were asked for."""
    for delta in deltas:
        if generation.logprobs is None or "content" not in delta:
            yield delta
        else:
            entries = _certain(_TOKEN.findall(delta["content"]), likeliest)
            generation.logprobs += entries
            yield {**delta, "logprobs": entries}


def _echoed(
    prompt: str, generation: Generation, rest: Iterable[Delta], likeliest: int | None
) -> Generator[Delta, None, None]:
    """The prompt's own text, then the rest."""
    yield from _shown([{"content": prompt}], generation, likeliest)
    yield from rest


def _certain(tokens: Iterable[str], likeliest: int | None) -> list[dict[str, Any]]:
    entries = ({"token": token, "logprob": 0.0, "bytes": list(token.encode())} for token in tokens)
    return [{**entry, "top_logprobs": [entry] if likeliest else []} for entry in entries]


def _characters(tokens: Sequence[int]) -> str:
    try:
        text = "".join(map(chr, tokens))
        text.encode()
    except (ValueError, OverflowError):
        raise UsageError("The prompt's tokens are none of the scripted model: they are code points there.") from None
    return text


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
    described = {word.lower() for word in _WORD.findall(str(function.get("description") or "")) if len(word) > 5}
    return {word for word in name | described if len(word) > 2} - _COMMON


def _call(tool: Tool, values: Values) -> str:
    function = tool["function"]
    arguments = values.fit({"type": "object", **(function.get("parameters") or {})}, f"Tool '{function['name']}'")
    body = {"name": function["name"], "arguments": arguments}
    return f"{CALL_OPEN}\n{json.dumps(body, ensure_ascii=False)}\n{CALL_CLOSE}"


def _formatted(form: Mapping[str, Any], messages: Sequence[Message], values: Values) -> str:
    if form["type"] == "json_schema":
        return json.dumps(values.fit(form["json_schema"]["schema"], "response_format"), ensure_ascii=False)
    said = " ".join(content_text(message, position) for position, message in enumerate(messages))
    keys = [word for word in Values(said).quoted if word.isidentifier()] or ["answer"]
    return json.dumps(dict.fromkeys(keys, values.text), ensure_ascii=False)


def _seconds(asked: str) -> float:
    wanted = _SECONDS.search(asked)
    return min(float(wanted[1]), _LONGEST) if wanted else 0.0


def _wait(seconds: float) -> Generator[Delta, None, None]:
    """Wait, with a chance to leave ten times a second."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        yield {}
        time.sleep(min(left, 0.1))
