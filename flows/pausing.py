"""A step that a person pauses while it works: its run is suspended in Prefect, and this process stops, at once.

What it had finished is on record; the run goes on from there when it is resumed.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause

from timestep.agents.record.lease import Lease

LOOK_SECONDS = 1.0

T = TypeVar("T")


async def unless_paused(lease: Lease, work: Coroutine[Any, Any, T], stopping: Callable[[], None]) -> T:
    """What ``work`` comes to; where the run is suspended meanwhile, the work is cut.

    Raises:
        Pause: by which Prefect's engine ends the process and leaves the run suspended. ``stopping`` was called.
    """
    working = asyncio.ensure_future(work)
    looking = asyncio.create_task(_suspended(UUID(lease.step_id)))
    try:
        await asyncio.wait((working, looking), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
            raise Pause(state=looking.result())
        return working.result()
    except Pause:  # Prefect raises it too, at the beginning of a task
        stopping()
        with suppress(Exception):  # who resumes the run need not wait for this process's end
            await lease.release()
        raise
    finally:
        looking.cancel()
        if not working.done():  # cancelled as a whole: the work ends as it would alone
            working.cancel()
            await asyncio.wait((working,))


async def _suspended(run_id: UUID) -> State[Any]:
    """Wait until the run is suspended; a Prefect server that is away suspends nothing."""
    async with get_client() as client:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(Exception):
                if (state := await _state(client, run_id)) is not None and state.is_paused():
                    return state


async def _state(client: PrefectClient, run_id: UUID) -> State[Any] | None:
    return (await client.read_flow_run(run_id)).state
