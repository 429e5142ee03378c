"""Flow runs on a real Prefect server, with no worker: waited for, woken and cancelled, whatever becomes of them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from sqlalchemy import text

from flows.batch import _Batch
from flows.progress import BatchProgress
from tests.server.stage import Stage, Step, staged
from timestep import repair, runs, steps
from timestep.agents.record import identity
from timestep.cli.running import _interrupted
from timestep.database.engine import Database
from timestep.errors import ConflictError, NotFoundError, RunFailedError, ServiceUnavailableError
from timestep.settings import Settings


@pytest.fixture(scope="module")
def stage(postgres_url: str) -> Iterator[Stage]:
    with staged(postgres_url, "prefect") as stage:
        yield stage


Make = Callable[..., Awaitable[Step]]


@pytest.fixture
async def make(stage: Stage) -> AsyncIterator[Make]:
    """Makes a run of a flow in the state RUNNING, or another; of a batch's, where a batch is given."""
    database = Database(stage.database_url)
    await database.migrate()
    async with PrefectClient(api=stage.prefect_api) as client:

        async def make(kind: StateType = StateType.RUNNING, flow: str = "step", of: Step | None = None) -> Step:
            flow_id = await client.create_flow_from_name(flow)
            deployment = await client.create_deployment(flow_id, name=flow, enforce_parameter_schema=False)
            key = None if of is None else f"{of.name}-{uuid4().int}"
            run = await client.create_flow_run_from_deployment(deployment, idempotency_key=key)
            step = Step(client, database, run.id)
            for reached in (StateType.RUNNING, kind) if kind is not StateType.SCHEDULED else ():
                await step.reach(reached)
            return step

        yield make
    await database.close()


async def lives(step: Step) -> None:
    """The step has a process: this one."""
    async with step.database.session() as session:
        await session.execute(
            text("insert into steps (id, attempt, holder, heartbeat_at) values (:id, 1, :holder, now())"),
            {"id": step.name, "holder": identity.own()},
        )


async def state(step: Step) -> str:
    return str((await step.client.read_flow_run(step.id)).state_name)


async def test_a_deployment_that_is_deleted_and_made_anew_is_found(make: Make) -> None:
    client = (await make()).client
    before = await runs.start(client, "step/step", {}, idempotency_key="a")
    assert before.deployment_id is not None
    await client.delete_deployment(before.deployment_id)
    with pytest.raises(NotFoundError, match="deployment 'step/step'"):
        await runs.start(client, "step/step", {})
    await make()  # registers it
    after = await runs.start(client, "step/step", {}, idempotency_key="b")
    again = await runs.start(client, "step/step", {}, idempotency_key="b")
    assert (after.id, after.deployment_id) == (again.id, again.deployment_id)
    assert before.deployment_id != after.deployment_id


async def test_a_deleted_run_has_failed_for_those_who_wait_for_it(make: Make) -> None:
    step, other = await make(), await make()
    waiting = asyncio.create_task(runs.wait(step.client, {step.id, other.id}))
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    await step.client.delete_flow_run(step.id)
    (run,) = await asyncio.wait_for(waiting, 5)
    assert run.id == step.id
    with pytest.raises(RunFailedError, match=f"Flow run '{step.id}' was deleted"):
        await runs.result(run, "local:///nowhere")


async def test_a_deleted_run_is_followed_to_its_end(make: Make) -> None:
    step = await make()
    await step.client.delete_flow_run(step.id)
    with pytest.raises(RunFailedError, match=f"Flow run '{step.id}' was deleted"):
        await runs.follow(
            step.client, step.id, on_state=lambda _: None, on_task=lambda _: None, on_progress=lambda *_: None
        )


@pytest.mark.parametrize("now", [StateType.RUNNING, StateType.FAILED, StateType.PAUSED])
async def test_a_late_wake_changes_nothing(now: StateType, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    step = await make()
    await step.reach(StateType.PAUSED, "Suspended", pause_reschedule=True)
    seen = await step.client.read_flow_run(step.id)

    async def read(_: UUID) -> FlowRun:
        return seen

    if now is not StateType.PAUSED:
        await step.reach(now)
    with monkeypatch.context() as patched:
        patched.setattr(step.client, "read_flow_run", read)
        assert await runs.resume(step.client, step.id) is (now is StateType.PAUSED)
    assert await state(step) == ("Resuming" if now is StateType.PAUSED else now.value.capitalize())
    if now is StateType.PAUSED:
        assert not await runs.resume(step.client, step.id)


async def test_a_crashed_run_is_cancelled_whether_its_process_lives_or_not(make: Make) -> None:
    dead, living = await make(StateType.CRASHED), await make(StateType.CRASHED)
    await lives(living)
    for step in (dead, living):
        await steps.cancel(step.client, step.database, step.id)
    # The service, or a worker, tells the process of a run that is Cancelling.
    assert (await state(dead), await state(living)) == ("Cancelled", "Cancelling")


@pytest.mark.parametrize("reached", [StateType.CRASHED, StateType.SCHEDULED, StateType.COMPLETED, None])
async def test_an_interrupted_command_cancels_its_run(reached: StateType | None, make: Make, stage: Stage) -> None:
    step = await make(reached or StateType.RUNNING)
    if reached is None:
        await step.client.delete_flow_run(step.id)
    await _interrupted(step.client, stage.database_url, step.id)
    if reached is None:
        with pytest.raises(ObjectNotFound):
            await state(step)
    else:
        assert await state(step) == ("Completed" if reached is StateType.COMPLETED else "Cancelled")


async def test_an_interrupted_command_leaves_a_waiting_run(make: Make, stage: Stage) -> None:
    step = await make(StateType.PAUSED)
    await _interrupted(step.client, stage.database_url, step.id)
    assert await state(step) == "Paused"


async def test_a_batch_is_cancelled_with_its_steps(make: Make) -> None:
    batch, other = await make(StateType.CRASHED, "batch"), await make(StateType.CRASHED)
    kinds = (StateType.RUNNING, StateType.CRASHED, StateType.SCHEDULED, StateType.COMPLETED)
    started = [await make(kind, of=batch) for kind in kinds]
    await steps.cancel(batch.client, batch.database, batch.id)
    assert await state(batch) == "Cancelled"
    assert [await state(step) for step in started] == ["Cancelling", "Cancelled", "Cancelled", "Completed"]
    assert await state(other) == "Crashed"


async def test_a_batch_whose_process_is_gone_takes_its_steps_with_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await make(StateType.CANCELLING, "batch")
    started = [await make(kind, of=batch) for kind in (StateType.RUNNING, StateType.CRASHED)]
    for step in started:
        await lives(step)
    monkeypatch.setattr(repair, "STARTING_SECONDS", 0.0)
    loop = repair.Repair(Settings(), batch.database, batch.client)
    assert (await loop.pass_once())[batch.id] is repair.Action.CANCEL
    await loop.close()
    assert [await state(step) for step in (batch, *started)] == ["Cancelled", "Cancelling", "Cancelling"]


async def test_a_batchs_own_process_cancels_a_step_that_just_crashed(make: Make) -> None:
    batch = await make(StateType.CANCELLING, "batch")
    started = [await make(kind, of=batch) for kind in (StateType.RUNNING, StateType.CRASHED, StateType.COMPLETED)]
    lease: Any = SimpleNamespace(step_id=batch.name)
    services: Any = SimpleNamespace(database=batch.database)
    progress = BatchProgress(len(started))
    running = _Batch(lease, batch.client, asyncio.Semaphore(), services, progress, {step.id for step in started})
    await running.cancel_steps()
    assert [await state(step) for step in started] == ["Cancelling", "Cancelled", "Completed"]


async def test_a_batch_is_started_again_by_its_first_digits(make: Make) -> None:
    batch = await make(StateType.FAILED, "batch")
    await lives(batch)
    found = await steps.find(batch.client, batch.database, batch.name[:8])
    await steps.resume(batch.client, batch.database, found)
    assert await state(batch) == "Scheduled"
    await batch.reach(StateType.COMPLETED)
    with pytest.raises(ConflictError, match="succeeded already"):
        await steps.cancel(batch.client, batch.database, batch.id)


@contextmanager
def sick_server(answers: list[int]) -> Iterator[str]:
    """A server that is healthy, and answers everything else with these statuses, the last for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 200 if self.path == "/api/health" else answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


async def test_a_server_that_answers_500_is_asked_again() -> None:
    with sick_server([500, 500, 404]) as url, pytest.raises(ObjectNotFound):
        async with runs.connect(url) as client:
            await client.read_flow_run(uuid4())


async def test_a_server_that_answers_500_for_good_is_named() -> None:
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}),
        sick_server([500]) as url,
        pytest.raises(ServiceUnavailableError, match=f"No Prefect server answers at '{url}'"),
    ):
        async with runs.connect(url) as client:
            await client.read_flow_run(uuid4())
