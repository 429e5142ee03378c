"""Calls that may block, each in a thread of its own that keeps no process from ending."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """The call's result, made in a daemon thread within the present context.

    A cancelled wait ends at once; the thread goes on until the call returns, or the process ends.
    """
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: list[T], error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result[0])
        else:
            future.set_exception(RuntimeError("StopIteration") if isinstance(error, StopIteration) else error)

    def work() -> None:
        result: list[T] = []
        error: BaseException | None = None
        try:
            result.append(context.run(call))
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True, name="blocking-call").start()
    return await future
