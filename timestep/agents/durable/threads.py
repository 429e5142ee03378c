"""Calls that may block, each in a thread of its own: one that hangs keeps neither other calls nor the process's end."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class CallThreads(ThreadPoolExecutor):
    """A daemon thread for each call. A pool, since asyncio takes nothing else as a loop's default executor."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Start the call at once."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = call(*arguments, **named)
            except StopIteration as error:  # asyncio's futures refuse it
                future.set_exception(RuntimeError(f"StopIteration: {error}"))
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=work, daemon=True, name="blocking-call").start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nobody waits for a call that hangs."""
        super().shutdown(wait=False)


_CALLS = CallThreads()


async def in_thread(call: Callable[[], T]) -> T:
    """The call's result, made in a thread of its own within the present context.

    A cancelled wait ends at once; the thread goes on until the call returns, or the process ends.
    """
    return await asyncio.get_running_loop().run_in_executor(_CALLS, contextvars.copy_context().run, call)


def leave_hung_calls_behind() -> None:
    """For a process that does one step: what ``asyncio.to_thread`` does, as with synchronous tools, is done so too.

    In asyncio's own pool a handful of tools that hang past their timeouts would leave no thread for anything else.
    """
    asyncio.get_running_loop().set_default_executor(CallThreads())
