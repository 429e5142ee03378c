"""A stage for steps: real PostgreSQL, Prefect server and HTTP server, and no worker. The test plays the process."""

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateDetails, StateType
from prefect.input.run_input import keyset_from_base_key
from sqlalchemy import text

from flows.forms import form
from tests.conftest import ROOT, environment, free_port
from tests.models.conftest import answers, wait_for
from timestep.agents.record.approvals import Approvals
from timestep.agents.record.events import EventLog
from timestep.agents.record.waiting import Kind, PendingCall
from timestep.database.engine import Database


@dataclass
class Stage:
    """Servers on ports of their own, each of which can be killed and started again."""

    home: Path
    database_url: str
    port: int = field(default_factory=free_port)
    prefect_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/steps"

    @property
    def prefect_api(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}/api"

    def start(self, name: str) -> None:
        module, url = {
            "prefect": ("deployments.prefect_server", f"{self.prefect_api}"),
            "http": ("timestep.server", f"http://127.0.0.1:{self.port}"),
        }[name]
        self.processes[name] = subprocess.Popen([sys.executable, "-m", module], cwd=ROOT, env=self._environment())
        wait_for(lambda: answers(url) or self.processes[name].poll() is not None, 90)
        assert self.processes[name].poll() is None

    def end(self, name: str, how: int = signal.SIGKILL) -> None:
        process = self.processes.pop(name)
        process.send_signal(how)
        process.wait(15)

    def _environment(self) -> dict[str, str]:
        ours = {
            "HOME": self.home,
            "PORT": self.port,
            "PREFECT_PORT": self.prefect_port,
            "MODEL_PORT": 9,
            "DATABASE_URL": self.database_url,
            "PREFECT_API_URL": self.prefect_api,
        }
        prefect = {
            "HOME": self.home / "prefect",
            "SERVER_DATABASE_CONNECTION_URL": Database(self.database_url).prefect_url,
            "SERVER_ANALYTICS_ENABLED": "false",
            "CLIENT_MAX_RETRIES": 10,
            "CLIENT_RETRY_EXTRA_CODES": 500,
        }
        named = [("TIMESTEP_", ours), ("PREFECT_", prefect)]
        return environment() | {f"{p}{name}": str(value) for p, group in named for name, value in group.items()}


async def _prepare(database_url: str) -> None:
    """Databases that are there, and ask for no key that another test made."""
    database = Database(database_url)
    await database.create_missing()
    connection = await database.connect()
    if await connection.fetchval("select to_regclass('api_keys')"):
        await connection.execute("delete from api_keys")
    await connection.close()


@contextmanager
def staged(database_url: str, *servers: str) -> Iterator[Stage]:
    """The named servers, on databases that are created where missing; ended at the end."""
    asyncio.run(_prepare(database_url))
    with tempfile.TemporaryDirectory(prefix="ts-") as home:
        stage = Stage(Path(home), database_url)
        try:
            for name in servers:
                stage.start(name)
            yield stage
        finally:
            for name in list(stage.processes):
                stage.end(name)


@dataclass
class Step:
    """A flow run of the flow ``step`` that no worker touches, moved through its states by hand."""

    client: PrefectClient
    database: Database
    id: UUID

    @property
    def name(self) -> str:
        return str(self.id)

    async def reach(self, kind: StateType, name: str | None = None, **details: Any) -> None:
        state: State[Any] = State(type=kind, name=name, message="It broke.", state_details=StateDetails(**details))
        await self.client.set_flow_run_state(self.id, state, force=True)

    async def ask(self, *calls: PendingCall) -> None:
        async with self.database.session() as session:
            await session.execute(text("insert into steps (id, attempt) values (:id, 1) on conflict do nothing"),
                                  {"id": self.name})  # fmt: skip
        await Approvals(self.database, self.name).ask(calls)

    async def suspend(self, *calls: PendingCall) -> None:
        """As the flow does it, with the form that people get to see."""
        made, base = form(list(calls)), "suspended-people-1"
        keyset = keyset_from_base_key(base)
        values = {"schema": made.model_json_schema(), "description": "…"}
        for key, value in values.items():
            await self.client.create_flow_run_input(self.id, keyset[key], json.dumps(value))  # type: ignore[literal-required]
        stored = [call.model_dump(mode="json") for call in calls]
        await self.client.create_flow_run_input(self.id, f"{base}-calls", json.dumps(stored))
        await self.reach(StateType.PAUSED, "Suspended", pause_reschedule=True, run_input_keyset=keyset)

    async def states(self) -> list[str]:
        history = await self.client.read_flow_run_states(self.id)
        return [str(state.name) for state in sorted(history, key=lambda state: state.timestamp)]

    @asynccontextmanager
    async def process(self, attempt: int = 1) -> AsyncIterator[EventLog]:
        """What the step's process would write its events with."""
        self.attempt, self.step_id = attempt, self.name
        async with self.database.session() as session:
            upsert = "insert into steps (id, attempt) values (:id, :n) on conflict (id) do update set attempt = :n"
            await session.execute(text(upsert), {"id": self.name, "n": attempt})
        log = EventLog(self.database, self)
        try:
            yield log
        finally:
            await log.close()

    attempt: int = 1
    step_id: str = ""


def call(kind: Kind = Kind.APPROVAL, number: int = 0, arguments: str = '{"to": "bob"}') -> PendingCall:
    return PendingCall(
        position=f"planner/0/{number}",
        kind=kind,
        call_id=f"call_{kind}_{number}",
        agent="planner",
        tool="ask_user" if kind is Kind.QUESTION else "send",
        arguments=arguments,
    )


@dataclass
class Sent:
    """A server-sent event as a client gets it."""

    id: int
    type: str
    data: dict[str, Any]


async def listen(response: httpx.Response) -> AsyncIterator[Sent]:
    """The events of a stream, parsed the way the standard says."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            yield Sent(int(fields.get("id", 0)), fields["event"], json.loads(fields["data"]))
            fields = {}


async def until_killed(url: str, after: int, into: list[Sent]) -> None:
    """Listen on until the stream breaks or ends."""
    with suppress(httpx.HTTPError):
        await until_ended(url, after, into)


async def until_ended(url: str, after: int, into: list[Sent]) -> None:
    """Listen on until the stream ends. HTTPError: it breaks."""
    headers = {"Last-Event-ID": str(after)} if after else {}
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("GET", f"{url}/events", headers=headers) as response,
    ):
        async for event in listen(response):
            into.append(event)  # noqa: PERF401 - one by one, as they come


def sockets(pid: int) -> int:
    """Connections that a process holds."""
    files = Path(f"/proc/{pid}/fd").iterdir()
    return sum(str(file.readlink()).startswith("socket:") for file in files if file.is_symlink())


async def eventually(holds: Any, seconds: float = 10) -> None:
    """Until the coroutine function says True, or the test fails."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.1)


def types(events: Iterable[Sent]) -> list[str]:
    return [event.type for event in events]
