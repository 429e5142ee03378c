"""An assistant's turn while it is written: text in, pieces in OpenAI's streaming shape out. Knows no model.

Text is held back only while it may still turn out to be something else: the beginning of a call, of a stop
sequence, or the white space at a turn's end, which is never part of a message.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from timestep.models.chat import CALL_CLOSE, CALL_OPEN, AssistantMessage, ToolCall

Delta = dict[str, Any]

_ARGUMENTS = '", "arguments": '
_NAME = '\n{"name": "'
_END = "}\n" + CALL_CLOSE


class Turn:
    """Reads one turn. ``calls``: whether ``<tool_call>`` opens a call; ``stop``: texts that end the turn.

    ``trim``: white space around the text is no part of it, as in a message; a text that goes on keeps it.
    """

    def __init__(self, *, calls: bool, stop: Sequence[str] = (), trim: bool = True) -> None:
        self.message = AssistantMessage()
        self.stopped = False
        self.in_call = False
        self._calls, self._trim = calls, trim
        self._stop = tuple(stop)
        self._held = ""
        self._dropped = 0
        self._call: ToolCall | None = None

    @property
    def undecided(self) -> int:
        """Characters at the end of what was fed that are not the message's, or not yet."""
        return len(self._held) + self._dropped

    def overshoot(self, piece: str) -> int:
        """Characters of ``piece`` beyond the end of a ``<tool_call>`` that it completes; -1: it completes none."""
        if not self._calls or self.in_call:
            return -1
        at = (self._held + piece).find(CALL_OPEN)
        return -1 if at < 0 else len(self._held) + len(piece) - at - len(CALL_OPEN)

    def feed(self, text: str) -> Iterator[Delta]:
        """The pieces that became certain with ``text``. Sets ``stopped`` at a stop sequence."""
        self._held += text
        while not self.stopped:
            held = len(self._held)
            yield from self._read_call() if self.in_call else self._read_text()
            if len(self._held) == held:
                return

    def close(self) -> Iterator[Delta]:
        """What was held back, now that the turn is over."""
        if not self.in_call and not self.stopped:
            yield from self._say(self._held.rstrip() if self._trim else self._held)
        elif self._call is not None and self._held:  # cut off by the length limit
            yield from self._argue(self._held)
        self._held = ""

    def _read_text(self) -> Iterator[Delta]:
        markers = (*self._stop, CALL_OPEN) if self._calls else self._stop
        found = min(((at, mark) for mark in markers if (at := self._held.find(mark)) >= 0), default=None)
        if found is None:
            keep = _undecided(self._held, markers, self._trim)
            text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            yield from self._say(text)
            return
        at, mark = found
        said = self._held[:at].rstrip() if self._trim else self._held[:at]
        yield from self._say(said)
        if mark == CALL_OPEN and self._calls:
            self.in_call, self._held = True, self._held[at + len(mark) :]
        else:
            self.stopped, self._dropped, self._held = True, len(self._held) - len(said), ""

    def _read_call(self) -> Iterator[Delta]:
        if self._call is None:
            name, separator, rest = self._held.partition(_ARGUMENTS)
            if separator:
                self._call, self._held = ToolCall(name=name.removeprefix(_NAME), arguments=""), rest
                self.message.tool_calls.append(self._call)
                yield {"tool_calls": [{"index": len(self.message.tool_calls) - 1, **self._call.wire()}]}
            return
        arguments, closed, rest = self._held.partition(_END)
        if not closed:
            keep = max((n for n in range(1, len(_END)) if arguments.endswith(_END[:n])), default=0)
            arguments, rest = arguments[: len(arguments) - keep], arguments[len(arguments) - keep :]
        self._held = rest
        yield from self._argue(arguments)
        if closed:
            self._call, self.in_call = None, False

    def _say(self, text: str) -> Iterator[Delta]:
        if self.message.content is None and self._trim:
            text = text.lstrip()
        if text:
            self.message.content = (self.message.content or "") + text
            yield {"content": text}

    def _argue(self, text: str) -> Iterator[Delta]:
        if text and self._call is not None:
            self._call.arguments += text
            yield {"tool_calls": [{"index": len(self.message.tool_calls) - 1, "function": {"arguments": text}}]}


def _undecided(text: str, markers: Sequence[str], trim: bool) -> int:
    """Characters at the text's end that may belong to a marker, or to the white space that ends the turn."""
    longest = max((len(mark) for mark in markers), default=0)
    keep = max(
        (n for n in range(1, min(longest, len(text)) + 1) if any(mark.startswith(text[-n:]) for mark in markers)),
        default=0,
    )
    certain = text[: len(text) - keep]
    return keep + (len(certain) - len(certain.rstrip()) if trim else 0)
