"""A generation in the shape of OpenAI's chat completions: whole, or as server-sent events."""

import json
import time
import uuid
from typing import Any

from timestep.models.generation import Generation
from timestep.models.turn import Delta

DONE = "data: [DONE]\n\n"


class Completion:
    """The answer of ``model`` (its resolved name) that ``generation`` gives."""

    def __init__(self, model: str, generation: Generation) -> None:
        self._model, self._generation = model, generation
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        head = json.dumps({**self._head, "object": "chat.completion.chunk"}, ensure_ascii=False)
        # Everything but the delta is the same in every event of a stream: written once.
        self._before = f'data: {head[:-1]}, "choices": [{{"index": 0, "delta": '
        self._after = ', "logprobs": null, "finish_reason": null}]}\n\n'

    def whole(self) -> dict[str, Any]:
        """The response to a request without streaming, once the generation is over."""
        choice = {
            "index": 0,
            "message": {**self._generation.message.wire(), "refusal": None},
            "logprobs": None,
            "finish_reason": self._generation.finish_reason,
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage(), **self._extra()}

    def opening(self) -> str:
        """The first event: the role."""
        return self.event({"role": "assistant", "content": ""})

    def event(self, delta: Delta) -> str:
        """The event of one delta."""
        return f"{self._before}{json.dumps(delta, ensure_ascii=False)}{self._after}"

    def closing(self, include_usage: bool) -> str:
        """The last events: the reason for the end, the usage, and the end mark.

        The usage has its own event where it was asked for, as OpenAI sends it; else it comes with the reason, for
        clients that count what they get.
        """
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": self._generation.finish_reason}
        if not include_usage:
            return self._last(choices=[choice], usage=self._usage(), **self._extra()) + DONE
        return self._last(choices=[choice], **self._extra()) + self._last(choices=[], usage=self._usage()) + DONE

    def _last(self, **fields: Any) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", **fields}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self._generation.prompt_tokens, self._generation.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._generation.cached_tokens},
        }

    def _extra(self) -> dict[str, Any]:
        timings = {name: round(seconds, 4) for name, seconds in self._generation.timings.items()}
        return {"timestep": {"forced": self._generation.forced, "model": self._model, "timings": timings}}
