"""The service under fault injection: `timestep up` on a home of its own, killed in parts or as a whole."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg

from deployments.local import free_port
from deployments.state import ServiceState, load_state
from tests.conftest import environment
from tests.tiny_model import tiny_model
from timestep.agents.record import identity
from timestep.settings import Settings

AGENTS = Path(__file__).with_name("agents_file.py")
READY_SECONDS = 180


class Stack:
    """One home and whatever runs on it now."""

    def __init__(self, folder: Path) -> None:
        agents = folder / "agents.py"
        shutil.copy(AGENTS, agents)
        shutil.copy(tiny_model(folder), folder / "tiny.gguf")
        self.calls = folder / "calls.jsonl"
        self.settings = Settings(
            home=folder / "home", port=free_port(), prefect_port=free_port(), agents=[agents], threads=1
        )

    async def up(self) -> None:
        """Start it where it doesn't run, and wait until every part of it is ready."""
        if load_state(self.settings) is None:
            await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "timestep", "up", "--detach"],
                env=environment() | self.settings.environment(),
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=READY_SECONDS,
            )
        async with asyncio.timeout(READY_SECONDS):
            while not all(child.ready for child in self.state.children.values()):
                await asyncio.sleep(0.1)

    @property
    def state(self) -> ServiceState:
        state = load_state(self.settings)
        assert state is not None, "the service is gone"
        return state

    def kill(self, part: str) -> None:
        """kill -9 of a supervised part, or of ``stack``, the parent, with whom every part dies."""
        pid = self.state.pid if part == "stack" else self.state.children[part].pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def holders(self) -> dict[str, int]:
        """Process ids of the flow runs that are at work now, by step."""
        rows = await self.fetch("select id, holder from steps where heartbeat_at > now() - interval '5 seconds'")
        return {row["id"]: int(row["holder"].split("/")[-3]) for row in rows if identity.exists(row["holder"])}

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Rows of our database; none while it is away."""
        try:
            connection = await asyncpg.connect(self.state.urls.database.replace("+asyncpg", ""), database="timestep")
        except (OSError, asyncpg.PostgresError, AssertionError):
            return []
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return []
        finally:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=1)

    def timestep(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on this home."""
        command = [sys.executable, "-m", "timestep", *arguments, "--home", str(self.settings.home)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)


@asynccontextmanager
async def running_stack() -> AsyncIterator[Stack]:
    """A fresh stack, ready; removed at the end."""
    # A short path: PostgreSQL's socket lies below it.
    folder = Path(tempfile.mkdtemp(prefix="tsc-"))
    stack = Stack(folder)
    try:
        await stack.up()
        yield stack
    finally:
        await asyncio.to_thread(stack.timestep, "down")
        if not os.environ.get("CHAOS_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)
