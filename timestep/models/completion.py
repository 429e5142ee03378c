"""Generations in the shape of OpenAI's chat completions: whole, or as server-sent events. One choice for each."""

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from timestep.models.generation import Generation
from timestep.models.turn import Delta

DONE = "data: [DONE]\n\n"


class Completion:
    """The answer of ``model`` (its resolved name) that the ``generations`` give."""

    def __init__(self, model: str, generations: Sequence[Generation]) -> None:
        self._model, self._generations = model, generations
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        head = json.dumps({**self._head, "object": "chat.completion.chunk"}, ensure_ascii=False)
        # Everything but the delta is the same in every event of a choice: written once.
        self._before = [
            f'data: {head[:-1]}, "choices": [{{"index": {index}, "delta": ' for index in range(len(generations))
        ]

    def whole(self) -> dict[str, Any]:
        """The response to a request without streaming, once the generations are over."""
        choices = [
            {
                "index": index,
                "message": {**generation.message.wire(), "refusal": None},
                "logprobs": _logprobs(generation.logprobs),
                "finish_reason": generation.finish_reason,
            }
            for index, generation in enumerate(self._generations)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(self._generations),
            **self._extra(),
        }

    def opening(self, index: int) -> str:
        """A choice's first event: the role."""
        return self.event(index, {"role": "assistant", "content": ""})

    def event(self, index: int, delta: Delta) -> str:
        """The event of one delta."""
        logprobs = "null"
        if "logprobs" in delta:
            logprobs = json.dumps(_logprobs(delta["logprobs"]), ensure_ascii=False)
            delta = {name: value for name, value in delta.items() if name != "logprobs"}
        said = json.dumps(delta, ensure_ascii=False)
        return f'{self._before[index]}{said}, "logprobs": {logprobs}, "finish_reason": null}}]}}\n\n'

    def ending(self, index: int, include_usage: bool) -> str:
        """A choice's last event: the reason for the end.

        The usage has its own event where it was asked for, as OpenAI sends it; else it comes with the last choice's
        reason, for clients that count what they get.
        """
        reason = self._generations[index].finish_reason
        choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}
        if index + 1 < len(self._generations):
            return self._last(choices=[choice])
        counted = {} if include_usage else {"usage": usage(self._generations)}
        return self._last(choices=[choice], **counted, **self._extra())

    def closing(self, include_usage: bool) -> str:
        """The stream's last events: the usage where it was asked for, and the end mark."""
        return (self._last(choices=[], usage=usage(self._generations)) if include_usage else "") + DONE

    def _last(self, **fields: Any) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", **fields}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    def _extra(self) -> dict[str, Any]:
        forced = any(generation.forced for generation in self._generations)
        return {"timestep": {"forced": forced, "model": self._model, "timings": timings(self._generations)}}


def usage(generations: Sequence[Generation], prompts: int = 1) -> dict[str, Any]:
    """Tokens of a request: each of its ``prompts`` counts once, however many choices it was continued with."""
    firsts = generations[:: len(generations) // prompts]
    prompt = sum(generation.prompt_tokens for generation in firsts)
    completion = sum(generation.completion_tokens for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(generation.cached_tokens for generation in firsts)},
    }


def timings(generations: Iterable[Generation]) -> dict[str, float]:
    """Seconds, summed up over the generations."""
    summed: dict[str, float] = {}
    for generation in generations:
        for name, seconds in generation.timings.items():
            summed[name] = summed.get(name, 0) + seconds
    return {name: round(seconds, 4) for name, seconds in summed.items()}


def _logprobs(entries: Sequence[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": entries, "refusal": None}
