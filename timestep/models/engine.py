"""The embedded engine: one model's weights in llama.cpp, one generation at a time. Knows files, not names.

llama.cpp is used through its C API, token by token: the grammar of a call starts when the model has itself opened
one, and a token costs little beyond llama.cpp's own work.
"""

import codecs
import ctypes
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import llama_cpp

from timestep.errors import ContextLengthError, ModelFileError, TimestepError, UsageError
from timestep.models.chat import ChatRenderer, texts_of
from timestep.models.files import check_gguf
from timestep.models.generation import Generation, Options, refuse_long
from timestep.models.logprobs import Entries, Entry, entry, unknown, with_entries
from timestep.models.sampler import Sampler, Sampling
from timestep.models.tools import calls_grammar, chosen_tools, either, format_grammar
from timestep.models.turn import Delta, Turn

_JUDGED = 64  # tokens of a prompt whose logits are read at once: a quarter MB each at 64k tokens


@dataclass(frozen=True)
class _Plan:
    """What one generation is held to: a grammar from the first token, or one from the first call on."""

    tokens: list[int]
    limit: int
    sampling: Sampling
    stop: tuple[str, ...]
    counted: int  # tokens of the prompt that the client sent
    calls: bool = False
    grammar: str | None = None
    lazy_grammar: str | None = None
    trim: bool = True
    logprobs: int | None = None
    echo: str | None = None  # the prompt's text, where it is part of the answer


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
        first = llama_cpp.llama_vocab_bos(self._vocab)
        self._first = first if first >= 0 else llama_cpp.llama_vocab_eos(self._vocab)
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
        return self._begin(plan, forced)

    def _begin(self, plan: _Plan, forced: bool) -> Generation:
        generation = Generation(forced, plan.counted)
        generation.deltas = self._run(plan, generation)
        generation.again = lambda seed: self._begin(replace(plan, sampling=replace(plan.sampling, seed=seed)), forced)
        return generation

    def _plan(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], options: Options
    ) -> tuple[_Plan, bool]:
        refuse_long(texts_of(messages), self.context_length)
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
        prompt = self.renderer.prompt(messages, tools)
        refuse_long([prompt], self.context_length)
        tokens = self.tokenize(prompt)
        held = self._held(tokens, options, calls=bool(offered), grammar=grammar, lazy_grammar=lazy)
        return held, grammar is not None

    def complete(self, prompt: str | Sequence[int], *, echo: bool = False, **options: Unpack[Options]) -> Generation:
        """How ``prompt``, a text or its tokens, goes on; ``echo``: its own text comes first.

        UsageError: a prompt longer than the context, tokens that the model doesn't have, or options that can't be
        meant. With ``echo`` and ``logprobs`` the prompt's tokens have theirs.
        """
        if isinstance(prompt, str):
            refuse_long([prompt], self.context_length)
            tokens = self.tokenize(prompt)
        else:
            tokens = list(prompt)
        if unknown := [token for token in tokens if not 0 <= token < self._llama.n_vocab()]:
            raise UsageError(f"'prompt' has the token {unknown[0]}, and this model has {self._llama.n_vocab()}.")
        text = None
        if echo:
            text = prompt if isinstance(prompt, str) else b"".join(map(self._shown, tokens)).decode("utf-8", "replace")
        return self._begin(
            self._held(tokens or [self._first], options, counted=len(tokens), trim=False, echo=text), False
        )

    def _held(self, tokens: list[int], options: Options, **more: Any) -> _Plan:
        room = self.context_length - len(tokens)
        if room < 1:
            raise ContextLengthError(len(tokens), self.context_length)
        sampling = Sampling(**{name: options[name] for name in Sampling.__annotations__ if name in options})  # type: ignore[literal-required]
        wanted = options.get("max_tokens")
        limit = room if wanted is None else min(wanted, room)
        stop = tuple(options.get("stop", ()))
        more = {"counted": len(tokens), **more}
        return _Plan(tokens, limit, sampling, stop, logprobs=options.get("logprobs"), **more)

    def _run(self, plan: _Plan, generation: Generation) -> Generator[Delta, None, None]:
        """Generate while somebody asks; leaves the lock and the context sound however it ends."""
        turn = Turn(calls=plan.calls, stop=plan.stop, trim=plan.trim)
        generation.message = turn.message
        with self._lock:
            sampler = Sampler(self._vocab, self._llama.n_vocab(), plan.sampling)
            try:
                if plan.grammar:
                    sampler.hold(plan.grammar)
                started = time.perf_counter()
                yield from self._read(plan, turn, sampler, generation)
                prompted = time.perf_counter()
                generation.timings["prompt_seconds"] = prompted - started
                yield from self._write(plan, turn, sampler, generation)
                generation.timings["decode_seconds"] = time.perf_counter() - prompted
            finally:
                sampler.close()

    def _read(self, plan: _Plan, turn: Turn, sampler: Sampler, generation: Generation) -> Iterator[Delta]:
        """Take in the prompt, and say it where it is asked for."""
        if plan.echo is not None:
            ready: list[Entry] = []
            if plan.logprobs is not None:
                ready = generation.logprobs = [made for made in self._judge(plan, sampler, plan.logprobs) if made]
            turn.message.content = plan.echo
            yield with_entries({"content": plan.echo}, list(ready))
        if not plan.limit:
            return
        generation.cached_tokens = self._rewind(plan.tokens)
        for position in range(len(self._seen), len(plan.tokens), self._llama.n_batch):
            self._decode(plan.tokens[position : position + self._llama.n_batch])
            yield {}  # a chance to leave between the batches of a long prompt

    def _judge(self, plan: _Plan, sampler: Sampler, top: int) -> Iterator[Entry]:
        """The entries of the prompt's own tokens."""
        self._forget()
        yield unknown(plan.tokens[0], self._shown)
        for start in range(0, len(plan.tokens) - 1, _JUDGED):
            self._decode(plan.tokens[start : start + _JUDGED], every=True)
            for place, token in enumerate(plan.tokens[start + 1 : start + _JUDGED + 1]):
                yield entry(token, sampler.logits(self._llama.ctx, place), top, self._shown)

    def _write(self, plan: _Plan, turn: Turn, sampler: Sampler, generation: Generation) -> Iterator[Delta]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        generation.finish_reason = "length"
        entries = None
        if plan.logprobs is not None:
            entries, generation.logprobs = Entries(turn), generation.logprobs or []
        while generation.completion_tokens < plan.limit:
            token = sampler.pick(self._llama.ctx)
            generation.completion_tokens += 1
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                generation.finish_reason = "tool_calls" if turn.message.tool_calls else "stop"
                break
            text = decoder.decode(self._piece(token))
            # Read before the token is taken: then its logits are gone.
            made = plan.logprobs is not None and entry(
                token, sampler.logits(self._llama.ctx), plan.logprobs, self._shown
            )
            text = self._take(token, text, plan, turn, sampler)
            if entries and made:
                entries.add(made, text)
            yield from _noted(turn.feed(text), entries, generation)
            if turn.stopped:
                generation.finish_reason = "stop"
                break
        yield from _noted(turn.feed(decoder.decode(b"", final=True)), entries, generation)
        yield from _noted(turn.close(), entries, generation)

    def _take(self, token: int, text: str, plan: _Plan, turn: Turn, sampler: Sampler) -> str:
        """Take the token as generated; its text, which ends where a call is opened."""
        beyond = turn.overshoot(text) if plan.lazy_grammar else -1
        if beyond >= 0 and plan.lazy_grammar:
            # What the token says beyond '<tool_call>' is dropped: from there on the grammar decides.
            text = text[: len(text) - beyond]
            sampler.hold(plan.lazy_grammar)
            self._decode(self._plain_tokens(text) if beyond else [token])
        else:
            sampler.accept(token)
            self._decode([token])
        return text

    def _rewind(self, tokens: list[int]) -> int:
        """Keep what the context already holds of ``tokens`` (at most all but one); how many that is."""
        same = 0
        for ours, theirs in zip(self._seen, tokens[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, same, -1):
            self._forget()
            return 0
        del self._seen[same:]
        return same

    def _forget(self) -> None:
        self._seen.clear()
        llama_cpp.llama_memory_clear(self._memory, True)

    def _decode(self, tokens: list[int], *, every: bool = False) -> None:
        """Take in the tokens; ``every``: the logits of each are read, not of the last alone."""
        taken = (llama_cpp.llama_token * len(tokens))(*tokens)  # both arrays live as long as the batch
        wanted = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens)) if every else None
        batch = llama_cpp.llama_batch_get_one(taken, len(tokens))
        if wanted is not None:
            batch.logits = wanted
        if code := llama_cpp.llama_decode(self._llama.ctx, batch):
            self._forget()
            raise TimestepError(f"llama.cpp could not decode (code {code}).")
        self._seen.extend(tokens)

    def _plain_tokens(self, text: str) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    def _piece(self, token: int, special: bool = False) -> bytes:
        length = llama_cpp.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, special)
        return self._buffer.raw[: max(length, 0)]

    def _shown(self, token: int) -> bytes:
        """A token's text where tokens are shown to people: a special one's has its name."""
        return self._piece(token, special=True)


def _noted(deltas: Iterator[Delta], entries: Entries | None, generation: Generation) -> Iterator[Delta]:
    """The deltas with the entries that have become certain with them."""
    if entries is None or generation.logprobs is None:
        yield from deltas
        return
    made = list(deltas)
    ready = entries.take()
    generation.logprobs += ready
    for index, delta in enumerate(made):
        yield with_entries(delta, ready if index == 0 else [])
    if ready and not made:
        yield {"logprobs": ready}
