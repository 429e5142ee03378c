"""How a flow run's process ends itself when its run was cancelled and no worker sees to it.

The worker that started a process cancels it. Where that worker died, or is not ours and waits half a minute for a
tool that hangs, the repair loop tells the process through the database.
"""

import os
import signal
import threading
import time
from contextlib import suppress

WORKER_SECONDS = 1.0  # for the worker to do it
TRACE_SECONDS = 2.5  # from there on, for the flow to end by itself and write its trace

_lock = threading.Lock()
_begun = False


def end_cancelled() -> None:
    """Have this process end as cancelled; returns at once, and does nothing the second time."""
    global _begun
    with _lock:
        if _begun:
            return
        _begun = True
    threading.Thread(target=_end, name="cancelling", daemon=True).start()


def _end() -> None:
    time.sleep(WORKER_SECONDS)
    if not _is_cancelled():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(TRACE_SECONDS)
    # What still runs does not listen: a tool that blocks in a thread. The flow has had its time to say so.
    os._exit(0)


def _is_cancelled() -> bool:
    """Whether a worker has told Prefect's engine; otherwise it's told here that the signal means no crash."""
    with suppress(ImportError, AttributeError):  # a private part of Prefect: should it move, the process just ends
        from prefect._internal import control_listener

        if control_listener.get_intent() is not None:
            return True
        control_listener._set_intent("cancel")
        return False
    os._exit(0)
