"""Calls that go on past their timeouts. One that blocks the event loop can't be ended by it, only with its process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 10.0  # seconds past a call's timeout; what lets the event loop run is ended there within a few


class Overdue:
    """The calls that are running in this process, by when they have to be over."""

    def __init__(self) -> None:
        self._due: dict[object, tuple[float, str]] = {}
        self._late: set[object] = set()

    @contextmanager
    def after(self, seconds: float, what: str) -> Iterator[None]:
        """Within is a call whose timeout is ``seconds``."""
        key = object()
        self._due[key] = time.monotonic() + seconds + PATIENCE, what
        try:
            yield
        finally:
            del self._due[key]

    def look(self) -> str | None:
        """A call that is late, and was at the last look: a process that was stopped for a while catches up first."""
        now = time.monotonic()
        late = {key: what for key, (due, what) in tuple(self._due.items()) if due < now}
        before, self._late = self._late, set(late)
        return next((what for key, what in late.items() if key in before), None)
