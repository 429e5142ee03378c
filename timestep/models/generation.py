"""What an engine is asked for and what it gives: one answer while it is generated. Knows no engine."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from timestep.errors import ContextLengthError
from timestep.models.chat import AssistantMessage
from timestep.models.turn import Delta

# Bytes of the longest token that vocabularies have: a run of spaces or dashes.
LONGEST_TOKEN = 128


class Options(TypedDict, total=False):
    """How to generate, as in OpenAI's chat completions. Left out: the engine's default.

    ``logprobs``: with each token its log probability, and this many of the likeliest others' (0–20).
    """

    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    response_format: Mapping[str, Any] | None
    stop: Sequence[str]
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int | None


@dataclass
class Generation:
    """One answer while it is generated: iterate its deltas (OpenAI's shape), then read the rest.

    ``forced``: the request left the model no choice (a required or named tool, a response format).
    ``timings``: ``prompt_seconds`` and ``decode_seconds``. Closing the iteration ends the generation.

    Where log probabilities were asked for, a delta has a key ``logprobs`` more: the new entries, in the shape of a
    chat completion's ``logprobs.content``. ``logprobs`` has all of them at the end.

    ``again`` makes another answer to the same request, with another seed: the prompt is not read anew.
    """

    forced: bool
    prompt_tokens: int
    deltas: Generator[Delta, None, None] = field(init=False)
    again: "Callable[[int | None], Generation]" = field(init=False)
    message: AssistantMessage = field(default_factory=AssistantMessage)
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"
    timings: dict[str, float] = field(default_factory=dict)
    logprobs: list[dict[str, Any]] | None = None

    def __iter__(self) -> Iterator[Delta]:
        return self.deltas

    def close(self) -> None:
        """End the generation where it stands."""
        self.deltas.close()


def refuse_long(texts: Iterable[str], context_length: int) -> None:
    """ContextLengthError where the texts' characters can't fit into the context, however they are cut into tokens.

    For texts of many megabytes, which take seconds to render and to cut.
    """
    least = sum(map(len, texts)) // LONGEST_TOKEN
    if least >= context_length:
        raise ContextLengthError(least, context_length, at_least=True)
