"""Log probabilities of tokens, as the model gives them: before temperature, penalties, biases and grammars.

Entries have the shape of a chat completion's ``logprobs.content``. They are given out with the text that they made.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from timestep.models.turn import Delta, Turn

Logits = np.ndarray[tuple[int], np.dtype[np.float32]]
Piece = Callable[[int], bytes]
Entry = dict[str, Any]


def entry(token: int, logits: Logits, top: int, piece: Piece) -> Entry:
    """The token's entry, with the ``top`` likeliest ones at its place."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    best = np.argpartition(values, -top)[-top:] if top else np.empty(0, dtype=np.int64)
    ranked = sorted((int(index) for index in best), key=lambda index: -values[index])
    others = [_named(index, float(values[index]), piece) for index in ranked]
    return {**_named(token, float(values[token]), piece), "top_logprobs": others}


def unknown(token: int, piece: Piece) -> Entry:
    """The entry of a text's first token, which nothing comes before."""
    return {**_named(token, None, piece), "top_logprobs": []}


def _named(token: int, logprob: float | None, piece: Piece) -> Entry:
    text = piece(token)
    return {"token": text.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(text)}


class Entries:
    """Entries that wait for the ``turn`` to decide on their text. Those of calls and of stop sequences are dropped."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._waiting: list[tuple[int, Entry]] = []  # where its text begins, and the entry
        self._fed = 0
        self._calling = False

    def add(self, made: Entry, text: str) -> None:
        """A token's entry; ``text`` is what the turn is fed for it."""
        self._calling = self._turn.in_call
        self._waiting.append((self._fed, made))
        self._fed += len(text)

    def take(self) -> list[Entry]:
        """The entries whose text has become the message's, now that the turn was fed."""
        decided = self._fed - self._turn.undecided
        ready = [made for at, made in self._waiting if at < decided]
        self._waiting = self._waiting[len(ready) :]
        return [] if self._calling or self._turn.in_call else ready


def with_entries(delta: Delta, ready: list[Entry]) -> Delta:
    """The delta that carries them."""
    return {**delta, "logprobs": ready} if ready else delta
