"""Flow runs that clients start: a few at a time, since many at once make each slow. Who gets no turn comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from timestep.errors import RateLimitError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

AT_ONCE = 4
TURN_SECONDS = 20.0  # that a start may wait for its turn
START_SECONDS = 30.0  # that Prefect's server may take for one
BACK_SECONDS = 5.0  # after which it is worth to come back


class Starts:
    """Starts flow runs for one server process."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def start(
        self, client: PrefectClient, deployment: str, parameters: dict[str, Any], **options: Any
    ) -> FlowRun:
        """As :func:`timestep.runs.start`, which takes the ``options``.

        Raises:
            RateLimitError: so many are being started that this one had no turn.
            ServiceUnavailableError: Prefect's server is away.
        """
        from timestep import runs
        from timestep.steps.views import answering

        async with self._turn(), answering(client, START_SECONDS):
            return await runs.start(client, deployment, parameters, **options)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            message = "Too many steps are being started at the moment. Come back in a few seconds."
            raise RateLimitError(message, BACK_SECONDS) from None
        try:
            yield
        finally:
            self._turns.release()
