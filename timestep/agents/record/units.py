"""One unit: a model call, a tool call or an epoch. Recorded in the step's ledger, shown as a Prefect task.

The ledger decides whether a unit runs; Prefect shows it, and keeps no result of its own. A unit answered from the
record makes no task run.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import date, datetime
from pathlib import PurePath
from typing import Any
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from pydantic import BaseModel

from timestep.agents.record.away import prefect_reached
from timestep.agents.record.ledger import Begin, Ledger
from timestep.errors import ServiceUnavailableError

Call = Callable[[], Awaitable[Any]]
PATIENCE = 120.0  # seconds that a unit which has not begun waits for Prefect
TRUST_SECONDS = 1.0  # from the beginning on the record, that nobody else is taken to have begun the unit
KINDS = ("model-call", "tool-call", "epoch", "training")

# The live part of a unit travels beside Prefect's parameters, which would be visited and hashed.
_work: ContextVar[Callable[[], Awaitable[None]]] = ContextVar("unit_work")


def fingerprint(request: Any) -> str:
    """sha256 (hex, 32 digits) of a request's canonical JSON; equal requests, equal text, any process."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """JSON of what often stands in a request. A live object is its type: its text may hold an address."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, UUID | PurePath | datetime | date):
        return str(value)
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


async def unit(ledger: Ledger, begin: Begin, call: Call) -> Any:
    """The unit's result: from the record where it had finished, else what ``call`` makes; it must be JSON.

    An exception of ``call`` is not recorded: the unit runs again when the step does. Outside a flow run there is no
    Prefect to show it to, and the call is simply made and recorded.

    Raises:
        UnitChangedError: another request is recorded at this position.
        ConflictError: the call may not run: no decision of a person lets it.
    """
    asked = time.monotonic()
    recorded = await ledger.begin(begin)
    if recorded is not None:
        return recorded.result
    results: list[Any] = []

    async def work() -> None:
        if time.monotonic() - asked > TRUST_SECONDS:  # it waited for Prefect, or was stopped
            await ledger.check()
        try:
            result = await call()
        except ServiceUnavailableError as error:
            error.by_tool = error.by_tool or _is_tool(begin)
            raise
        # Within the task: what Prefect shows as completed is on the record. Shielded: what was done is recorded,
        # even if nobody waits for it any more, such as a parallel call of one that failed.
        await asyncio.shield(ledger.finish(begin.position, result))
        results.append(result)

    if FlowRunContext.get() is None:
        await work()
    else:
        await _shown(begin, work, results)
    return results[0]


def _is_tool(begin: Begin) -> bool:
    """Whether the call is of a user's code; what a session reads and adds is shown as a tool's call as well."""
    return begin.kind == "tool-call" and not begin.position.startswith("session/")


async def _shown(begin: Begin, work: Callable[[], Awaitable[None]], results: list[Any]) -> None:
    """Do the work within a Prefect task. A Prefect that can't show it now neither fails it nor has it done twice."""
    loop = asyncio.get_running_loop()
    deadline, begun = loop.time() + PATIENCE, False

    async def noted() -> None:
        nonlocal begun
        begun = True
        await work()

    while True:
        token = _work.set(noted)
        try:
            await _tasks[begin.kind](name=begin.name)
        except Exception:
            if results:  # done and recorded: only the task's end could not be told
                return
            # Before the work there is the slot of a concurrency limit to be had, and the server may be away.
            if begun:
                raise
            if loop.time() > deadline:
                with prefect_reached():
                    raise
            await asyncio.sleep(1)
        else:
            return
        finally:
            _work.reset(token)


async def _execute(name: str) -> None:
    await _work.get()()


# One task per kind, so that the Prefect UI can tell them apart and a user can limit each by its tag.
_tasks = {
    kind: task(
        name=kind,
        task_run_name="{name}",
        tags=[kind],
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )(_execute)
    for kind in KINDS
}
