"""One persisted unit: a model call, a tool call or an epoch, run as a Prefect task whose result is kept.

A unit's key is its step, its position in the step and a fingerprint of its request *as JSON*. Live
objects are never hashed: their hashes change between processes and can collide between tenants. When
the same flow run starts again, a finished unit answers from storage and is not executed.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from prefect import task
from prefect.context import FlowRunContext

Call = Callable[[], Awaitable[Any]]

# The live part of a unit travels beside Prefect's parameters, which would be visited and hashed.
_call: ContextVar[Call] = ContextVar("unit_call")


def fingerprint(request: Any) -> str:
    """sha256 (hex, 32 digits) of a request's canonical JSON; equal requests, equal text, any process."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def unit_key(step_id: str, position: str, request: Any) -> str:
    """Storage key under which the unit's result is recorded, below the result block's own prefix."""
    return f"steps/{step_id}/units/{position}-{fingerprint(request)}"


async def _execute(key: str, name: str) -> Any:
    return await _call.get()()


# One task per kind, so that the Prefect UI can tell them apart and a user can limit each by its tag.
_tasks = {
    kind: task(
        name=kind,
        task_run_name="{name}",
        tags=[kind],
        cache_key_fn=lambda _, parameters: str(parameters["key"]),
        persist_result=True,
        result_serializer="json",
        log_prints=False,
    )(_execute)
    for kind in ("model-call", "tool-call", "epoch", "training")
}


async def unit(kind: str, name: str, key: str, call: Call) -> Any:
    """Run ``call`` once per key; its result must be JSON.

    Args:
        kind: ``model-call``, ``tool-call``, ``epoch`` or ``training``.
        name: What the Prefect UI shows for this task run.
        key: From :func:`unit_key`.
        call: Makes the result. Its exception is not recorded: the unit runs again when the step does.

    Outside a flow run there is nothing to resume, and the call is simply made.
    """
    if FlowRunContext.get() is None:
        return await call()
    token = _call.set(call)
    try:
        return await _tasks[kind](key=key, name=name)
    finally:
        _call.reset(token)
