"""The engines that are loaded, least recently used first out, and the one thread they all generate on.

Two generations at once would only take llama.cpp's cores from each other. Knows files, not names.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Unpack

from timestep.errors import RateLimitError
from timestep.models.files import SCRIPTED
from timestep.models.generation import Generation, Options
from timestep.models.gguf import GGUFHeader
from timestep.models.turn import Delta

LATEST_SECONDS = 60.0  # after which a client that was refused should ask again, however many waited


class Engine(Protocol):
    """A model ready to generate, one answer at a time. Nothing is generated before the first delta is asked for."""

    context_length: int

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """The assistant's next turn. UsageError: a prompt longer than the context, or options that can't be meant."""
        ...

    def complete(self, prompt: str | Sequence[int], *, echo: bool = False, **options: Unpack[Options]) -> Generation:
        """How a text, or its tokens, goes on: deltas of ``content``; ``echo``: the prompt's own text comes first.

        ``max_tokens`` may be 0 here. Raises as :meth:`stream`.
        """
        ...


class Run:
    """A generation that waits for its turn or is under way: iterate it, as many deltas at a time as have come up.

    It begins by itself. Closing it ends the generation.
    """

    def __init__(
        self,
        generation: Generation,
        thread: ThreadPoolExecutor,
        waiting: "set[Run]",
        begun: Callable[[], None],
        took: Callable[[float], None],
    ) -> None:
        self._generation, self._waiting, self._begun, self._took = generation, waiting, begun, took
        self._loop, self._gone = asyncio.get_running_loop(), threading.Event()
        self._items: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()  # None or an exception is the last
        waiting.add(self)
        thread.submit(self._generate)

    async def __aiter__(self) -> AsyncGenerator[list[Delta], None]:
        try:
            while True:
                batch = [await self._items.get()]
                while not self._items.empty():
                    batch.append(self._items.get_nowait())
                last = batch[-1]
                if deltas := [item for item in batch if isinstance(item, dict)]:
                    yield deltas
                if isinstance(last, Exception):
                    raise last
                if last is None:
                    return
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End the generation, or never begin it."""
        self._gone.set()
        self._waiting.discard(self)

    def _generate(self) -> None:
        self._loop.call_soon_threadsafe(self._begin)
        started = time.perf_counter()
        try:
            for delta in () if self._gone.is_set() else self._generation:
                if self._gone.is_set():
                    return
                if delta:
                    self._put(delta)
            self._put(None)
        except Exception as error:
            self._put(error)
        finally:
            self._generation.close()
            self._loop.call_soon_threadsafe(self._took, time.perf_counter() - started)

    def _begin(self) -> None:
        self._waiting.discard(self)
        self._begun()

    def _put(self, item: Delta | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)


class EnginePool:
    """At most ``size`` engines in memory, each with a context of ``context_length`` tokens or the model's, if less.

    An engine that is dropped while it generates lives until it is done. ``limit``: generations that may wait.
    """

    def __init__(self, context_length: int, threads: int, size: int = 2, limit: int = 64) -> None:
        self._context_length, self._threads, self._size = context_length, threads, size
        self._engines: OrderedDict[Path, Engine] = OrderedDict()
        self._limit = limit
        self._waiting: set[Run] = set()
        self._prepared = 0  # generations that are let in and don't wait yet
        self._running = False
        self._seconds = 0.0  # that a generation takes, the last ones counting most
        self._loading = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    @property
    def loaded(self) -> list[Path]:
        """Files of the engines in memory, least recently used first."""
        return list(self._engines)

    @property
    def waiting(self) -> int:
        """Generations that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether a generation is under way."""
        return self._running

    async def get(self, path: Path) -> Engine:
        """The engine of a model file, loaded if it isn't yet. ModelFileError: it can't be."""
        async with self._loading:
            if path not in self._engines:
                while len(self._engines) >= self._size:
                    self._engines.popitem(last=False)
                self._engines[path] = await asyncio.to_thread(self._load, path)
            self._engines.move_to_end(path)
            return self._engines[path]

    @contextmanager
    def admit(self, *, always: bool = False) -> Iterator[None]:
        """A place in the queue, kept while a generation is prepared: it has to be run before the context ends.

        RateLimitError where as many wait as may; ``always`` for those that have to be done anyway.
        """
        # One is under way, or will be at once: it waits for nobody.
        ahead = self._prepared + len(self._waiting) + self._running - 1
        if not always and ahead >= self._limit:
            message = f"The model server has {ahead} requests waiting. Come back later."
            raise RateLimitError(message, min(ahead * self._seconds, LATEST_SECONDS))
        self._prepared += 1
        try:
            yield
        finally:
            self._prepared -= 1

    def run(self, generation: Generation) -> Run:
        """Have it generated, once those before it are done."""
        return Run(generation, self._thread, self._waiting, self._begun, self._took)

    def _begun(self) -> None:
        self._running = True

    def _took(self, seconds: float) -> None:
        self._running = False
        self._seconds += (seconds - self._seconds) / 8

    def close(self) -> None:
        """Take no more work and forget the engines."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._engines.clear()

    def _load(self, path: Path) -> Engine:
        if path == SCRIPTED:
            from timestep.models.scripted import ScriptedEngine

            return ScriptedEngine(self._context_length)
        from timestep.models.engine import LlamaEngine

        architecture = GGUFHeader.read(path).metadata
        trained = architecture.get(f"{architecture.get('general.architecture')}.context_length", self._context_length)
        return LlamaEngine(path, min(self._context_length, int(trained)), self._threads)
