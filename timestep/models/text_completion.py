"""Generations in the shape of OpenAI's (legacy) completions of texts: whole, or as server-sent events."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from timestep.models.completion import DONE, usage
from timestep.models.generation import Generation
from timestep.models.turn import Delta


class TextCompletion:
    """The answer of ``model`` (its resolved name): the choices of each of its ``prompts``, one after the other."""

    def __init__(self, model: str, generations: Sequence[Generation], prompts: int) -> None:
        self._generations, self._prompts = generations, prompts
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._offsets = [0] * len(generations)  # characters of each choice that were sent

    def whole(self) -> dict[str, Any]:
        """The response to a request without streaming, once the generations are over."""
        choices = [
            _choice(index, generation.message.content or "", generation.logprobs, 0, generation.finish_reason)
            for index, generation in enumerate(self._generations)
        ]
        return {**self._head, "choices": choices, "usage": usage(self._generations, self._prompts)}

    def opening(self, index: int) -> str:
        """Nothing: a text begins with its first piece."""
        return ""

    def event(self, index: int, delta: Delta) -> str:
        """The event of one delta."""
        text = delta.get("content", "")
        choice = _choice(index, text, delta.get("logprobs"), self._offsets[index], None)
        self._offsets[index] += len(text)
        return self._event(choices=[choice])

    def ending(self, index: int, include_usage: bool) -> str:
        """A choice's last event: the reason for the end."""
        return self._event(choices=[_choice(index, "", None, 0, self._generations[index].finish_reason)])

    def closing(self, include_usage: bool) -> str:
        """The stream's last events: the usage where it was asked for, and the end mark."""
        counted = usage(self._generations, self._prompts)
        return (self._event(choices=[], usage=counted) if include_usage else "") + DONE

    def _event(self, **fields: Any) -> str:
        return f"data: {json.dumps({**self._head, **fields}, ensure_ascii=False)}\n\n"


def _choice(
    index: int, text: str, entries: Sequence[dict[str, Any]] | None, offset: int, reason: str | None
) -> dict[str, Any]:
    logprobs = None if entries is None else _logprobs(entries, offset)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(entries: Sequence[dict[str, Any]], offset: int) -> dict[str, Any]:
    """The entries in the shape that this API has of its own: four lists, a place for each token."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    likeliest = [{other["token"]: other["logprob"] for other in entry["top_logprobs"]} for entry in entries]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": likeliest if any(likeliest) else None,
        "text_offset": offsets,
    }
