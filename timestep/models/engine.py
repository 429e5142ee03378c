"""The embedded engine: one model's weights in llama.cpp, one generation at a time. Knows files, not names.

llama.cpp is used through its C API, token by token: the grammar of a call starts when the model has itself opened
one, and a token costs little beyond llama.cpp's own work.
"""

import codecs
import ctypes
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import llama_cpp

from timestep.errors import ModelFileError, TimestepError, UsageError
from timestep.models.chat import ChatRenderer
from timestep.models.files import check_gguf
from timestep.models.generation import Generation, Options
from timestep.models.sampler import Sampler, Sampling
from timestep.models.tools import calls_grammar, chosen_tools, either, format_grammar
from timestep.models.turn import Delta, Turn


@dataclass(frozen=True)
class _Plan:
    """What one generation is held to: a grammar from the first token, or one from the first call on."""

    tokens: list[int]
    limit: int
    sampling: Sampling
    stop: tuple[str, ...]
    calls: bool
    grammar: str | None
    lazy_grammar: str | None


class LlamaEngine:
    """A GGUF model ready to chat. ``context_length`` in tokens; ``threads``: at most the machine's cores."""

    def __init__(self, path: Path, context_length: int = 4096, threads: int = 1) -> None:
        """Load the weights. ModelFileError: not usable; UsageError: a context longer than the model's."""
        check_gguf(path)
        self.renderer = ChatRenderer.from_file(path)
        try:
            self._llama = llama_cpp.Llama(
                str(path),
                n_ctx=context_length,
                n_threads=threads,
                n_threads_batch=threads,
                flash_attn=True,  # as llama.cpp's own tools choose; a tenth faster on a CPU too
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise ModelFileError(path, f"llama.cpp can't load it: {error}") from None
        trained = llama_cpp.llama_model_n_ctx_train(self._llama.model)
        if context_length > trained:
            raise UsageError(f"Context length {context_length} is longer than the {trained} that '{path.name}' knows.")
        self.context_length = context_length
        self._vocab = llama_cpp.llama_model_get_vocab(self._llama.model)
        self._memory = llama_cpp.llama_get_memory(self._llama.ctx)
        self._seen: list[int] = []  # the tokens whose state the context holds
        self._buffer = ctypes.create_string_buffer(1024)
        self._lock = threading.Lock()

    def tokenize(self, text: str) -> list[int]:
        """Tokens of rendered text: special tokens parsed, the first one added where the model wants it."""
        return list(self._llama.tokenize(text.encode(), add_bos=True, special=True))

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Answer ``messages``; ``tools`` and ``options`` as in OpenAI's API.

        Nothing is generated before the first delta is asked for; one generation runs at a time, others wait there.
        UsageError: a prompt longer than the context, or options that can't be meant.
        """
        plan, forced = self._plan(messages, tools or (), options)
        generation = Generation(forced, len(plan.tokens))
        generation.deltas = self._run(plan, generation)
        return generation

    def _plan(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], options: Options
    ) -> tuple[_Plan, bool]:
        offered, must = chosen_tools(tools, options.get("tool_choice", "auto"))
        parallel = options.get("parallel_tool_calls", True)
        grammar = format_grammar(options.get("response_format"))
        lazy = None
        if must:
            grammar = calls_grammar(offered, parallel=parallel)
        elif offered and grammar:
            grammar = either(calls_grammar(offered, parallel=parallel), grammar)
        elif offered:
            lazy = calls_grammar(offered, parallel=parallel, opened=True)
        # Tools that may not be called stay described: the prompt, and so its cache, is the same for every choice.
        tokens = self.tokenize(self.renderer.prompt(messages, tools))
        room = self.context_length - len(tokens)
        if room < 1:
            raise UsageError(
                f"The prompt has {len(tokens)} tokens and the context {self.context_length}. Shorten the conversation, "
                "or serve the model with a longer context (TIMESTEP_CONTEXT_LENGTH)."
            )
        sampling = Sampling(**{name: options[name] for name in Sampling.__annotations__ if name in options})  # type: ignore[literal-required]
        limit = min(options.get("max_tokens") or room, room)
        plan = _Plan(tokens, limit, sampling, tuple(options.get("stop", ())), bool(offered), grammar, lazy)
        return plan, grammar is not None

    def _run(self, plan: _Plan, generation: Generation) -> Generator[Delta, None, None]:
        """Generate while somebody asks; leaves the lock and the context sound however it ends."""
        turn = Turn(calls=plan.calls, stop=plan.stop)
        generation.message = turn.message
        with self._lock:
            sampler = Sampler(self._vocab, self._llama.n_vocab(), plan.sampling)
            try:
                if plan.grammar:
                    sampler.hold(plan.grammar)
                started = time.perf_counter()
                generation.cached_tokens = self._rewind(plan.tokens)
                for position in range(len(self._seen), len(plan.tokens), self._llama.n_batch):
                    self._decode(plan.tokens[position : position + self._llama.n_batch])
                    yield {}  # a chance to leave between the batches of a long prompt
                prompted = time.perf_counter()
                generation.timings["prompt_seconds"] = prompted - started
                yield from self._write(plan, turn, sampler, generation)
                generation.timings["decode_seconds"] = time.perf_counter() - prompted
            finally:
                sampler.close()

    def _write(self, plan: _Plan, turn: Turn, sampler: Sampler, generation: Generation) -> Iterator[Delta]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        generation.finish_reason = "length"
        while generation.completion_tokens < plan.limit:
            token = sampler.pick(self._llama.ctx)
            generation.completion_tokens += 1
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                generation.finish_reason = "tool_calls" if turn.message.tool_calls else "stop"
                break
            text = decoder.decode(self._piece(token))
            beyond = turn.overshoot(text) if plan.lazy_grammar else -1
            if beyond >= 0 and plan.lazy_grammar:
                # What the token says beyond '<tool_call>' is dropped: from there on the grammar decides.
                text = text[: len(text) - beyond]
                sampler.hold(plan.lazy_grammar)
                self._decode(self._plain_tokens(text) if beyond else [token])
            else:
                sampler.accept(token)
                self._decode([token])
            yield from turn.feed(text)
            if turn.stopped:
                generation.finish_reason = "stop"
                break
        yield from turn.feed(decoder.decode(b"", final=True))
        yield from turn.close()

    def _rewind(self, tokens: list[int]) -> int:
        """Keep what the context already holds of ``tokens`` (at most all but one); how many that is."""
        same = 0
        for ours, theirs in zip(self._seen, tokens[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, same, -1):
            llama_cpp.llama_memory_clear(self._memory, True)
            same = 0
        del self._seen[same:]
        return same

    def _decode(self, tokens: list[int]) -> None:
        batch = (llama_cpp.llama_token * len(tokens))(*tokens)
        code = llama_cpp.llama_decode(self._llama.ctx, llama_cpp.llama_batch_get_one(batch, len(tokens)))
        if code:
            self._seen.clear()
            llama_cpp.llama_memory_clear(self._memory, True)
            raise TimestepError(f"llama.cpp could not decode (code {code}).")
        self._seen.extend(tokens)

    def _plain_tokens(self, text: str) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    def _piece(self, token: int) -> bytes:
        length = llama_cpp.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, False)
        return self._buffer.raw[: max(length, 0)]
