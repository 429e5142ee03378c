"""The engines that are loaded, least recently used first out, and the one thread they all generate on.

Two generations at once would only take llama.cpp's cores from each other. Knows files, not names.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Unpack

from timestep.models.files import SCRIPTED
from timestep.models.generation import Generation, Options
from timestep.models.gguf import GGUFHeader
from timestep.models.turn import Delta


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


class EnginePool:
    """At most ``size`` engines in memory, each with a context of ``context_length`` tokens or the model's, if less.

    An engine that is dropped while it generates lives until it is done.
    """

    def __init__(self, context_length: int, threads: int, size: int = 2) -> None:
        self._context_length, self._threads, self._size = context_length, threads, size
        self._engines: OrderedDict[Path, Engine] = OrderedDict()
        self._loading = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    @property
    def loaded(self) -> list[Path]:
        """Files of the engines in memory, least recently used first."""
        return list(self._engines)

    async def get(self, path: Path) -> Engine:
        """The engine of a model file, loaded if it isn't yet. ModelFileError: it can't be."""
        async with self._loading:
            if path not in self._engines:
                while len(self._engines) >= self._size:
                    self._engines.popitem(last=False)
                self._engines[path] = await asyncio.to_thread(self._load, path)
            self._engines.move_to_end(path)
            return self._engines[path]

    async def run(self, generation: Generation) -> AsyncGenerator[list[Delta], None]:
        """The generation's deltas, as many at a time as have come up. Closing the iteration ends the generation."""
        loop, gone = asyncio.get_running_loop(), threading.Event()
        items: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()  # None or an exception is the last

        def put(item: Delta | Exception | None) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        def generate() -> None:
            try:
                for delta in () if gone.is_set() else generation:
                    if gone.is_set():
                        return
                    if delta:
                        put(delta)
                put(None)
            except Exception as error:
                put(error)
            finally:
                generation.close()

        self._thread.submit(generate)
        try:
            while True:
                batch = [await items.get()]
                while not items.empty():
                    batch.append(items.get_nowait())
                last = batch[-1]
                if deltas := [item for item in batch if isinstance(item, dict)]:
                    yield deltas
                if isinstance(last, Exception):
                    raise last
                if last is None:
                    return
        finally:
            gone.set()

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
