"""Judges a model file as it is served: perplexity and exact tool calls on conversations it never trained on."""

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from pydantic import BaseModel

from timestep.errors import TimestepError, UsageError
from timestep.models.engine import LlamaEngine
from training.dataset import Conversation, render


class Evaluation(BaseModel):
    """``perplexity`` is exp of the mean negative log-likelihood (nats) of the assistants' tokens.

    ``tool_call_accuracy`` is the share of assistant turns with tool calls that the model, free to call
    (``tool_choice=auto``) and greedy, made with equal names and arguments. None: nothing to measure.
    """

    perplexity: float | None
    tool_call_accuracy: float | None
    tool_calls: int
    tokens: int
    conversations: int


def better(candidate: Evaluation, current: Evaluation) -> bool:
    """The rule of ``promote: if_better``: no fewer exact tool calls, and a lower perplexity.

    Where a perplexity could not be measured nothing is better.
    """
    if candidate.perplexity is None or current.perplexity is None:
        return False
    calls = (candidate.tool_call_accuracy or 0.0) >= (current.tool_call_accuracy or 0.0)
    return calls and candidate.perplexity < current.perplexity


async def evaluate(gguf: Path, held_out: Sequence[Conversation], *, context_length: int, threads: int) -> Evaluation:
    """Judge ``gguf`` on ``held_out``, rendered as it is served; conversations are cut at ``context_length`` tokens."""
    return await asyncio.to_thread(_evaluate, gguf, held_out, context_length, threads)


def _evaluate(gguf: Path, held_out: Sequence[Conversation], context_length: int, threads: int) -> Evaluation:
    engine = LlamaEngine(gguf, context_length, threads)
    turns = [(conversation, turn) for conversation in held_out for turn in _call_turns(conversation)]
    exact = sum(_is_exact(engine, conversation, turn) for conversation, turn in turns)
    rendered = [render(conversation, engine.renderer, engine.tokenize) for conversation in held_out]
    scored = [(engine.tokenize(text), answers) for text, answers in rendered]
    loss, tokens = _Scorer(gguf, context_length, threads).score(scored) if scored else (0.0, 0)
    return Evaluation(
        perplexity=math.exp(min(loss / tokens, 700.0)) if tokens else None,
        tool_call_accuracy=exact / len(turns) if turns else None,
        tool_calls=len(turns),
        tokens=tokens,
        conversations=len(held_out),
    )


def _call_turns(conversation: Conversation) -> list[int]:
    """Positions of the assistant's messages that call tools which were offered."""
    if not conversation.tools:
        return []
    return [k for k, message in enumerate(conversation.messages) if k and message.get("tool_calls")]


def _is_exact(engine: LlamaEngine, conversation: Conversation, turn: int) -> bool:
    wanted = [
        (call["function"]["name"], call["function"]["arguments"]) for call in conversation.messages[turn]["tool_calls"]
    ]
    # An answer much longer than the right one can't be right: there is no need to wait for its end.
    limit = 32 + 2 * len(engine.tokenize(json.dumps(wanted)))
    try:
        generation = engine.stream(
            conversation.messages[:turn], conversation.tools, tool_choice="auto", temperature=0.0, max_tokens=limit
        )
    except UsageError:  # a prompt longer than the context can't be answered when it is served either
        return False
    for _ in generation:
        pass
    made = [(call.name, call.arguments) for call in generation.message.tool_calls]
    return _parsed(made) == _parsed(wanted)


def _parsed(calls: list[tuple[str, str]]) -> list[tuple[str, Any]] | None:
    try:
        return [(name, json.loads(arguments)) for name, arguments in calls]
    except ValueError:
        return None


class _Scorer:
    """Log-likelihoods of tokens under a model, a few hundred at a time so that memory stays small."""

    CHUNK = 256

    def __init__(self, gguf: Path, context_length: int, threads: int) -> None:
        self._llama = llama_cpp.Llama(
            str(gguf),
            n_ctx=context_length,
            n_batch=self.CHUNK,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self._context_length = context_length

    def score(self, conversations: Sequence[tuple[list[int], list[range]]]) -> tuple[float, int]:
        """(summed negative log-likelihood in nats, tokens) over the spans of all conversations."""
        batch = llama_cpp.llama_batch_init(self.CHUNK, 0, 1)
        try:
            losses = [loss for tokens, spans in conversations for loss in self._losses(batch, tokens, spans)]
        finally:
            llama_cpp.llama_batch_free(batch)
        return float(sum(losses)), len(losses)

    def _losses(self, batch: Any, tokens: list[int], spans: list[range]) -> Iterator[float]:
        tokens = tokens[: self._context_length]
        targets = {position for span in spans for position in span if 0 < position < len(tokens)}
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._llama.ctx), True)
        for begin in range(0, len(tokens), self.CHUNK):
            chunk = tokens[begin : begin + self.CHUNK]
            for k, token in enumerate(chunk):
                batch.token[k], batch.pos[k] = token, begin + k
                batch.n_seq_id[k], batch.seq_id[k][0] = 1, 0
                batch.logits[k] = begin + k + 1 in targets
            batch.n_tokens = len(chunk)
            if code := llama_cpp.llama_decode(self._llama.ctx, batch):
                raise TimestepError(f"llama.cpp could not evaluate the model (code {code}).")
            for k in range(len(chunk)):
                if batch.logits[k]:
                    row = llama_cpp.llama_get_logits_ith(self._llama.ctx, k)
                    logits = np.ctypeslib.as_array(row, shape=(self._llama.n_vocab(),))
                    yield _surprise(logits, tokens[begin + k + 1])


def _surprise(logits: np.ndarray[Any, np.dtype[np.float32]], token: int) -> float:
    """Negative log of the softmax at ``token``, in nats."""
    highest = logits.max()
    return float(highest + np.log(np.exp(logits - highest).sum(dtype=np.float64)) - logits[token])
