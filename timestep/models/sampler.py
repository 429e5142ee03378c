"""Picks the next token from the model's logits, held to a grammar from the moment one is set.

A grammar first judges the token that was picked anyway and looks at the whole vocabulary only when it refuses that
one: most tokens of a call are right by themselves, and looking costs as much as decoding a token.
"""

import ctypes
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from timestep.errors import UsageError

Handle = Any  # a pointer of llama.cpp's C API

TOP_K = 40  # llama.cpp's default; the tail of a small model's distribution is noise
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@dataclass(frozen=True)
class Sampling:
    """How to pick. ``temperature`` 0 is greedy; ``seed`` None is a new one for each generation."""

    temperature: float = 0.8
    top_p: float = 0.95
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


class Sampler:
    """One generation's sampler over ``vocab`` (a llama.cpp handle) of ``size`` tokens. Close it."""

    def __init__(self, vocab: Handle, size: int, sampling: Sampling) -> None:
        self._vocab, self._size = vocab, size
        self._ids = np.arange(size, dtype=np.int32)
        self._candidates = np.zeros(size, dtype=_CANDIDATE)
        self._pointer: Any = ctypes.cast(self._candidates.ctypes.data, llama_cpp.llama_token_data_p)
        self._array = llama_cpp.llama_token_data_array()
        self._grammar: Handle | None = None
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for part in _parts(size, sampling):
            llama_cpp.llama_sampler_chain_add(self._chain, part)

    def hold(self, grammar: str) -> None:
        """Hold every further token to ``grammar`` (GBNF). UsageError where llama.cpp can't read it."""
        self._free_grammar()
        self._grammar = llama_cpp.llama_sampler_init_grammar(self._vocab, grammar.encode(), b"root")
        if not self._grammar:
            raise UsageError("A tool's JSON schema, or the response format's, is beyond what a grammar can hold.")

    def pick(self, context: Handle) -> int:
        """The next token, by the logits of the context's last position."""
        found = self.logits(context)
        token = self._choose(found)
        if self._grammar and not self._allows(token):
            token = self._choose(found, self._grammar)
        return token

    def logits(self, context: Handle, position: int = -1) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        """The model's logits at a position of the last batch; they are gone with the next."""
        address = llama_cpp.llama_get_logits_ith(context, position)
        return np.ctypeslib.as_array(address, shape=(self._size,))

    def accept(self, token: int) -> None:
        """Take ``token`` as generated."""
        llama_cpp.llama_sampler_accept(self._chain, token)
        if self._grammar:
            llama_cpp.llama_sampler_accept(self._grammar, token)

    def close(self) -> None:
        """Free what llama.cpp holds."""
        self._free_grammar()
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None

    def _choose(self, logits: "np.ndarray[tuple[int], np.dtype[np.float32]]", held: Handle | None = None) -> int:
        candidates, array = self._candidates, self._array
        candidates["id"], candidates["logit"] = self._ids, logits
        array.data = self._pointer
        array.size, array.selected, array.sorted = self._size, -1, False
        if held:
            llama_cpp.llama_sampler_apply(held, ctypes.byref(array))
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        one = (llama_cpp.llama_token_data * 1)(llama_cpp.llama_token_data(id=token, logit=1.0, p=0.0))
        array = llama_cpp.llama_token_data_array(data=one, size=1, selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(one[0].logit > -math.inf)

    def _free_grammar(self) -> None:
        if self._grammar:
            llama_cpp.llama_sampler_free(self._grammar)
            self._grammar = None


def _parts(size: int, sampling: Sampling) -> list[Handle]:
    parts = []
    biases = [llama_cpp.llama_logit_bias(token, bias) for token, bias in sampling.logit_bias.items() if token < size]
    if biases:
        array = (llama_cpp.llama_logit_bias * len(biases))(*biases)
        parts.append(llama_cpp.llama_sampler_init_logit_bias(size, len(biases), array))
    if sampling.frequency_penalty or sampling.presence_penalty:
        parts.append(
            llama_cpp.llama_sampler_init_penalties(
                size, 1024, 1.0, sampling.frequency_penalty, sampling.presence_penalty
            )
        )
    if sampling.temperature <= 0:
        return [*parts, llama_cpp.llama_sampler_init_greedy()]
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed & 0x7FFFFFFF
    return [
        *parts,
        llama_cpp.llama_sampler_init_top_k(TOP_K),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_temp(sampling.temperature),
        llama_cpp.llama_sampler_init_dist(seed),
    ]
