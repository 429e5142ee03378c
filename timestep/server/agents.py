"""/v1/agents: the agents that steps can be of.

The agents files are programs of the user's: a process of its own imports them, once for each change of theirs.
"""

import asyncio
import json
import sys
import time
from typing import Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from timestep.errors import NotFoundError, TimestepError
from timestep.server.documented import errors
from timestep.server.pages import After, Limit, Page, page
from timestep.server.refusals import known_query
from timestep.settings import Settings

router = APIRouter(prefix="/v1/agents", tags=["agents"], dependencies=[Depends(known_query)])

LISTING_SECONDS = 60.0
FAILED_SECONDS = 30.0


class AgentView(BaseModel):
    """An agent that a step can name."""

    id: str = Field(description="Its name.")
    object: Literal["agent"] = "agent"
    kind: str = Field(description="agent, or controlflow.agent, controlflow.task, controlflow.flow.")
    model: str | None = Field(None, description="The model that it names; empty for the service's base model.")
    base: str | None = Field(None, description="What its own model is trained from; empty where it can't be trained.")
    tools: list[str] = Field(default_factory=list)
    handoffs: list[str] = Field(default_factory=list)


class Roster(BaseModel):
    """The agents, and the one that acts where none is named."""

    default: str
    agents: list[AgentView]


class Listing:
    """The roster as it was when the agents files were last read; read again once one of them has changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self._read: tuple[tuple[int, ...], Roster] | None = None
        self._failed: tuple[tuple[int, ...], float, TimestepError] | None = None

    async def roster(self) -> Roster:
        """The agents as they are now.

        Raises:
            TimestepError: a file is absent or does not import; which, and why.
        """
        async with self._turn:
            changed = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in self._settings.agents)
            if self._read is None or self._read[0] != changed:
                self._refuse_again(changed)
                try:
                    self._read = changed, await self._fresh()
                except TimestepError as error:
                    self._failed = changed, time.monotonic(), error
                    raise
            return self._read[1]

    def _refuse_again(self, changed: tuple[int, ...]) -> None:
        """The error of the last time, where that was lately and no file has changed: it may have taken a minute."""
        if self._failed and self._failed[0] == changed and time.monotonic() - self._failed[1] < FAILED_SECONDS:
            raise self._failed[2].with_traceback(None)

    async def _fresh(self) -> Roster:
        command = (sys.executable, "-m", "timestep.agents.listing")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                (written, _) = await process.communicate()
        except TimeoutError:
            raise TimestepError(f"The agents files took longer than {LISTING_SECONDS:.0f} seconds to import.") from None
        finally:
            if process.returncode is None:
                process.kill()
        said = json.loads(written or b"{}")
        if "default" not in said:
            raise TimestepError(said.get("error", {}).get("message") or "The agents files could not be imported.")
        return Roster.model_validate(said)


async def roster(request: Request) -> Roster:
    """The agents as they are now. Errors as of :meth:`Listing.roster`."""
    state = request.app.state
    if not hasattr(state, "listing"):
        state.listing = Listing(state.settings)
    found: Roster = await state.listing.roster()
    return found


@router.get("", operation_id="listAgents", summary="List the agents.")
async def list_agents(request: Request, limit: Limit = 100, after: After = None) -> Page[AgentView]:
    """The agents by name."""
    found = [one for one in (await roster(request)).agents if after is None or one.id > after]
    return Page[AgentView](**page(found[: limit + 1], limit))


@router.get("/{agent}", operation_id="getAgent", summary="Get an agent.", responses=errors(404))
async def get_agent(agent: str, request: Request) -> AgentView:
    """An agent by name."""
    known = {one.id: one for one in (await roster(request)).agents}
    if agent not in known:
        raise NotFoundError("agent", agent, known)
    return known[agent]
