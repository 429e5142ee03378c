"""The Prefect server as a pod runs it: its environment, its login, and everything of ours that asks it."""

import asyncio
import base64
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event, Resource
from prefect.events.clients import get_events_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from deployments.prefect_server import EXIT_CONFIG, SHARED, server_environment, shared_environment, warning
from tests.conftest import ROOT, environment, free_port
from tests.models.conftest import answers, wait_for
from timestep import runs
from timestep.database.engine import Database
from timestep.errors import AuthenticationError, UsageError
from timestep.repair import repair_loop
from timestep.server.records import Housekeeper
from timestep.settings import Settings

LOGIN = "timestep:a-long-p%40ssword"
COMMAND = [sys.executable, "-m", "deployments.prefect_server"]
PUBLIC = "https://prefect.example"


@flow
def step() -> None:
    """Is never run: the tests are its process."""


@pytest.fixture(scope="module")
def behind_login(template: str, postgres_url: str) -> Iterator[Settings]:
    """A server started with our settings alone, on databases that a job migrated before."""
    home, port = Path("/nowhere"), free_port()
    ours = {
        "TIMESTEP_DATABASE_URL": postgres_url,
        "TIMESTEP_PREFECT_PORT": str(port),
        "TIMESTEP_PREFECT_AUTH": LOGIN,
        "TIMESTEP_PREFECT_UI_URL": f"{PUBLIC}/",
    }
    variables = {**environment(), **ours, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    migrate = [sys.executable, "-m", "deployments.migrate"]
    assert subprocess.run(migrate, cwd=ROOT, env=variables, check=False).returncode == 0
    variables["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] = "false"
    process = subprocess.Popen(COMMAND, cwd=ROOT, env=variables)
    settings = Settings(
        home=home,
        database_url=postgres_url,
        prefect_api_url=f"http://127.0.0.1:{port}/api",
        prefect_auth=LOGIN,
        crash_grace=0,
    )
    try:
        wait_for(lambda: answers(settings.prefect_api) or process.poll() is not None, 300)
        assert process.poll() is None
        yield settings
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
async def client(behind_login: Settings) -> AsyncIterator[PrefectClient]:
    async with runs.connect(behind_login.prefect_api, behind_login.prefect_login) as connected:
        yield connected


async def crashed(client: PrefectClient) -> FlowRun:
    flow_id = await client.create_flow(step)
    await client.create_deployment(flow_id, "step")
    run = await runs.start(client, "step/step", {})
    await client.set_flow_run_state(run.id, Crashed(message="It broke."), force=True)
    return run


async def test_only_its_health_is_told_without_the_login(behind_login: Settings) -> None:
    known = {"authorization": "Basic " + base64.b64encode(LOGIN.encode()).decode()}
    async with httpx.AsyncClient(base_url=behind_login.prefect_api) as asking:
        assert (await asking.get("/health")).status_code == 200
        for headers, status in (({}, 401), ({"authorization": "Basic d3Jvbmc6"}, 401), (known, 200)):
            answer = await asking.post("/flow_runs/filter", json={}, headers=headers)
            assert answer.status_code == status
        # The page from its public address, whichever name the proxy asks by; and no other page.
        for origin, status in ((PUBLIC, 200), ("https://evil.example", 403)):
            headers = {**known, "origin": origin, "host": "prefect.internal"}
            assert (await asking.post("/flow_runs/filter", json={}, headers=headers)).status_code == status


async def test_a_wrong_login_is_one_clear_error(behind_login: Settings) -> None:
    with pytest.raises(AuthenticationError, match=r"asks for another login\. Set TIMESTEP_PREFECT_AUTH"):
        async with runs.connect(behind_login.prefect_api, "some:body") as client:
            await client.read_flow_runs()


async def test_steps_start_and_the_repair_loop_starts_them_again(behind_login: Settings, client: PrefectClient) -> None:
    run, stop = await crashed(client), asyncio.Event()
    database = Database(str(behind_login.database_url))
    loop = asyncio.create_task(repair_loop(behind_login, database, stop))
    async with asyncio.timeout(60):
        while not (now := await client.read_flow_run(run.id)).state or now.state.is_crashed():
            await asyncio.sleep(0.2)
    stop.set()
    await loop
    await database.close()
    assert now.state.is_scheduled()


async def test_the_doors_find_a_step(behind_login: Settings, client: PrefectClient) -> None:
    run = await crashed(client)
    housekeeper = Housekeeper(behind_login)
    try:
        records = await housekeeper.records()
        assert (await records.client.read_flow_run(run.id)).id == run.id
    finally:
        await housekeeper.close()


async def test_events_come_in_by_websocket(behind_login: Settings, client: PrefectClient) -> None:
    values: dict[Any, Any] = {PREFECT_API_URL: behind_login.prefect_api, PREFECT_API_AUTH_STRING: LOGIN}
    event = Event(event="timestep.test", resource=Resource({"prefect.resource.id": "timestep.test.1"}))
    with temporary_settings(values):
        async with get_events_client() as events:
            await events.emit(event)
    async with asyncio.timeout(60):
        while True:
            found = await client._client.post("/events/filter", json={"filter": {"event": {"name": ["timestep.test"]}}})
            if [one["id"] for one in found.json()["events"]] == [str(event.id)]:
                break
            await asyncio.sleep(0.3)


def test_what_follows_from_our_settings(tmp_path: Path) -> None:
    ours = Settings(home=tmp_path, prefect_auth=LOGIN, prefect_ui_url=f"{PUBLIC}/", prefect_host="0.0.0.0")
    made = server_environment(ours, "postgresql+asyncpg://u:p@h/prefect")
    assert made["PREFECT_SERVER_API_AUTH_STRING"] == LOGIN
    assert made["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")[-1] == PUBLIC
    assert warning(ours) is None
    plain = Settings(home=tmp_path, prefect_host="0.0.0.0")
    assert "PREFECT_SERVER_API_AUTH_STRING" not in server_environment(plain, "x")
    assert "asks for no key" in str(warning(plain))
    assert (ours.prefect_ui, plain.prefect_ui) == (PUBLIC, "http://127.0.0.1:4200")


def test_a_split_without_redis_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = {"PREFECT_REDIS_MESSAGING_HOST": "redis", "PREFECT_REDIS_MESSAGING_PASSWORD": "p"}
    refused: list[dict[str, str]] = [
        {},
        {"PREFECT_MESSAGING_BROKER": "prefect_redis.messaging"},
        {**redis, "PREFECT_MESSAGING_CACHE": "prefect.server.utilities.messaging.memory"},
    ]
    for given in refused:
        with pytest.raises(UsageError, match="without Redis"):
            shared_environment(given)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="'prefect-redis' is not installed"):
        shared_environment(redis)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    made = shared_environment(redis)
    assert made.items() >= SHARED.items()
    assert made["PREFECT_REDIS_WORKER_CLEANUP_QUEUE_PASSWORD"] == "p"


@pytest.mark.parametrize("part", ["--web-only", "--services-only"])
def test_a_process_that_can_t_be_meant_says_why_in_one_line(part: str) -> None:
    variables = {**environment(), "TIMESTEP_DATABASE_URL": "postgresql://u@127.0.0.1:9/postgres"}
    done = subprocess.run([*COMMAND, part], cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n"), "without Redis" in done.stderr) == (EXIT_CONFIG, 1, True)
    done = subprocess.run(COMMAND, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (EXIT_CONFIG, "No database is named: set TIMESTEP_DATABASE_URL.\n")
