"""Runs whose processes die, hang or are cancelled, in the running service: what it does about them by itself."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelling, Crashed

from deployments import service_key
from deployments.state import ServiceState, load_state
from storage.traces import TraceStore
from tests.conftest import Service
from tests.flows.conftest import Steps
from tests.flows.test_step_inference import store
from timestep import runs
from timestep.agents.record.lease import Standing
from timestep.database.engine import Database
from timestep.repair import LIVING_SECONDS, PENDING_SECONDS, STARTING_SECONDS, Action, Judge, Repair
from timestep.settings import Settings, load_settings


class Scene:
    """One step in the service, and what befalls it. The gate is what lets the tool ``blocked`` come to its end."""

    def __init__(self, service: Service, steps: Steps) -> None:
        self.service, self.steps = service, steps
        self._log, self._gate = service.agents.with_name("calls.log"), service.agents.with_name("gate")
        service.clear_calls()
        self._gate.unlink(missing_ok=True)

    async def start(self, agent: str, reached: str, **parameters: Any) -> FlowRun:
        """A step of this agent that has come to its call ``reached``."""
        run = await self.steps.start(input="go", agent=agent, **parameters)
        await self.until(lambda: reached in self.service.calls)
        return run

    async def until(self, there: Callable[[], bool], seconds: float = 60) -> float:
        """Wait; returns the seconds that took."""
        started = time.monotonic()
        async with asyncio.timeout(seconds):
            while not there():
                await asyncio.sleep(0.02)
        return time.monotonic() - started

    async def again(self, call: str, times: int = 2) -> float:
        return await self.until(lambda: self.service.calls.count(call) == times)

    def process(self) -> psutil.Process:
        """The flow run's process: that of the last call."""
        return psutil.Process(int(self._log.read_text().splitlines()[-1].rsplit(" ", 1)[1]))

    def worker(self) -> psutil.Process | None:
        """The worker, while it is ready."""
        with suppress(OSError, ValueError, psutil.Error):
            return psutil.Process(int((self.service.home / "run" / "worker.ready").read_text()))
        return None

    @property
    def known(self) -> ServiceState:
        """The service's own word of itself."""
        state = load_state(Settings(home=self.service.home))
        assert state is not None
        return state

    @property
    def database(self) -> Database:
        return Database(self.known.database)

    @asynccontextmanager
    async def unattended(self) -> AsyncIterator[None]:
        """The service's own repair loop, which is its HTTP server's, does nothing meanwhile."""
        pid = self.known.children["http-server"].pid
        assert pid is not None
        server = psutil.Process(pid)
        server.suspend()
        try:
            yield
        finally:
            server.resume()

    async def finished(self, run: FlowRun) -> State[Any]:
        self._gate.touch()
        done = await self.steps.finished(run, 120)
        assert done.state is not None
        return done.state

    async def state(self, run: FlowRun) -> State[Any]:
        state = (await self.steps.client.read_flow_run(run.id)).state
        assert state is not None
        return state


@pytest.fixture
async def scene(service: Service, steps: Steps) -> AsyncIterator[Scene]:
    scene = Scene(service, steps)
    yield scene
    scene._gate.touch()


PASSED = {"model 0": 1, "tool before": 1, "model 1": 1, "tool blocked": 2, "model 2": 1}


async def test_a_killed_run_goes_on_where_it_was(scene: Scene) -> None:
    run = await scene.start("blocker", "tool blocked")
    scene.process().kill()
    await scene.again("tool blocked")
    assert (await scene.finished(run)).is_completed()
    assert Counter(scene.service.calls) == PASSED


async def test_a_run_killed_with_its_worker_goes_on_where_it_was(scene: Scene) -> None:
    run = await scene.start("blocker", "tool blocked")
    worker, process = scene.worker(), scene.process()
    assert worker is not None
    worker.kill()
    process.kill()
    await scene.again("tool blocked")
    assert (await scene.finished(run)).is_completed()
    assert (await scene.steps.client.read_flow_run(run.id)).run_count == 2, "it is the same run"
    assert Counter(scene.service.calls) == PASSED


@pytest.mark.long
async def test_a_run_outlives_its_worker_and_can_be_cancelled_without_it(scene: Scene) -> None:
    run, other = await scene.start("blocker", "tool blocked"), await scene.steps.start(input="go", agent="idler")
    await scene.until(lambda: "tool idle" in scene.service.calls)
    idler, worker = scene.process(), scene.worker()
    assert worker is not None
    worker.kill()
    await scene.until(lambda: scene.worker() not in (None, worker))
    await scene.steps.client.set_flow_run_state(other.id, Cancelling())
    await scene.until(lambda: ended(idler))
    assert (await scene.finished(run)).is_completed()
    assert Counter(scene.service.calls)["tool blocked"] == 1
    assert (await scene.finished(other)).is_cancelled()


@pytest.mark.long
async def test_a_tool_that_blocks_its_process_past_its_timeout_ends_it_and_runs_again(scene: Scene) -> None:
    run = await scene.start("stubborn", "tool block", inference={"tool_timeout": 1})
    process = scene.process()
    await scene.until(lambda: ended(process), 20)
    await scene.again("tool block")
    assert (await scene.finished(run)).is_completed()
    assert Counter(scene.service.calls) == {"model 0": 1, "tool block": 2, "model 1": 1}


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.long
async def test_a_stopped_process_is_taken_over_and_does_nothing_more(scene: Scene) -> None:
    run = await scene.start("blocker", "tool blocked")
    stopped = scene.process()
    stopped.suspend()
    await age_heartbeat(scene, run)
    await scene.again("tool blocked")
    # It may hold what others wait for: whoever takes over wakes it, and it finds that it is superseded.
    await scene.until(lambda: ended(stopped), 10)
    assert (await scene.finished(run)).is_completed()
    assert Counter(scene.service.calls) == PASSED


async def test_who_starts_an_ended_run_again_need_not_wait_for_its_process(scene: Scene) -> None:
    runs = [await scene.steps.start(input=text, agent="planner") for text in ("go", "")]
    states = [await scene.finished(run) for run in runs]
    assert [state.is_completed() for state in states] == [True, False]
    connection = await scene.database.connect()
    try:
        async with asyncio.timeout(10):
            while await connection.fetchval(
                "select count(holder) from steps where id = any($1)", [str(run.id) for run in runs]
            ):
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def age_heartbeat(scene: Scene, run: FlowRun) -> None:
    """As if the process had been silent for so long that it counts as hung."""
    connection = await scene.database.connect()
    while await connection.fetchval("select now() - pg_postmaster_start_time() < make_interval(secs => 40)"):
        await asyncio.sleep(0.5)
    old = "update steps set heartbeat_at = now() - make_interval(secs => 21) where id = $1"
    await connection.execute(old, str(run.id))
    await connection.close()


async def test_loops_that_look_at_the_same_time_start_a_crashed_run_once(scene: Scene) -> None:
    run = await scene.start("blocker", "tool blocked")
    settings = load_settings(home=scene.service.home)
    loops = [Repair(settings, scene.database, scene.steps.client) for _ in range(2)]
    done: list[Action] = []
    async with scene.unattended():
        scene.process().kill()
        async with asyncio.timeout(30):
            while not (await scene.state(run)).is_crashed():
                await asyncio.sleep(0.05)
            while not done:
                passes = await asyncio.gather(*(loop.pass_once() for loop in loops))
                done += [looked[run.id] for looked in passes if run.id in looked]
        for loop in loops:
            await loop.close()
    assert done == [Action.REVIVE]
    await scene.again("tool blocked")
    assert (await scene.finished(run)).is_completed()
    states = await scene.steps.client.read_flow_run_states(run.id)
    assert Counter(state.type for state in states)[StateType.SCHEDULED] == 2, "by who made it, and by one loop"
    assert (await scene.steps.client.read_flow_run(run.id)).run_count == 2
    assert Counter(scene.service.calls) == PASSED


async def test_a_false_crash_is_put_right(scene: Scene) -> None:
    run = await scene.start("blocker", "tool blocked")
    await scene.steps.client.set_flow_run_state(run.id, Crashed())
    async with asyncio.timeout(30):
        while not (await scene.state(run)).is_running():
            await asyncio.sleep(0.1)
    assert (await scene.finished(run)).is_completed()
    assert Counter(scene.service.calls)["tool blocked"] == 1


async def test_a_run_that_prefect_cannot_change_keeps_no_other_from_being_put_right(scene: Scene) -> None:
    other, run = await scene.start("idler", "tool idle"), await scene.start("blocker", "tool blocked")
    connection = await scene.database.connect("prefect")
    async with connection.transaction():
        for one in (run, other):
            await scene.steps.client.set_flow_run_state(one.id, Crashed())
        # As the session of a machine that is gone does.
        await connection.execute("select from flow_run where id = $1 for update", run.id)
        async with asyncio.timeout(30):
            while not (await scene.state(other)).is_running():
                await asyncio.sleep(0.1)
        assert (await scene.state(run)).is_crashed()
    await connection.close()
    async with asyncio.timeout(30):
        while not (await scene.state(run)).is_running():
            await asyncio.sleep(0.1)
    await scene.steps.client.set_flow_run_state(other.id, Cancelling())
    assert (await scene.finished(run)).is_completed()
    assert (await scene.finished(other)).is_cancelled()


async def test_cancelling_a_step_that_was_falsely_called_crashed_ends_its_process(scene: Scene) -> None:
    run = await scene.start("blocker", "tool blocked")
    process = scene.process()
    await scene.steps.client.set_flow_run_state(run.id, Crashed(message="Somebody thought so."))
    scene.service.run("cancel", str(run.id))
    await scene.until(lambda: ended(process), 10)
    assert (await scene.finished(run)).is_cancelled()
    assert Counter(scene.service.calls)["tool blocked"] == 1


async def test_a_killed_batch_finds_its_steps_again(scene: Scene, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"input": "go", "agent": "planner"}, {"input": "go", "agent": "blocker"}]
    source.write_text("\n".join(json.dumps(line) for line in lines))
    batch = await runs.start(scene.steps.client, "batch/batch", {"inputs": str(source), "output": str(out)})
    await scene.until(lambda: {"tool blocked", "tool two"} <= set(scene.service.calls))
    process = (await scene.steps.client.read_flow_run(batch.id)).infrastructure_pid
    os.kill(int(str(process)), signal.SIGKILL)
    async with asyncio.timeout(30):
        while not (await scene.state(batch)).is_crashed():
            await asyncio.sleep(0.05)
    assert (await scene.finished(batch)).is_completed()
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["output"]["output"] for result in results] == ["all done", "passed"]
    assert scene.service.calls.count("tool blocked") == 1, "its steps are steps of their own, and went on"


async def test_a_run_that_crashes_again_and_again_is_given_up(scene: Scene) -> None:
    run = await scene.start("mortal", "tool die")
    state = await scene.finished(run)
    assert state.name == "CrashLimit" and state.is_failed()
    assert state.message is not None and f"timestep resume {run.id}" in state.message
    assert Counter(scene.service.calls) == {"model 0": 1, "tool die": 3}


@pytest.mark.parametrize(("agent", "call"), [("idler", "tool idle"), ("blocker", "tool blocked")])
async def test_cancelling_stops_a_tool_and_keeps_the_trace(scene: Scene, agent: str, call: str) -> None:
    await cancelled_in(scene, agent, call)


@pytest.mark.usefixtures("controlflow_agents")
async def test_cancelling_stops_a_controlflow_agents_tool_and_keeps_the_trace(scene: Scene) -> None:
    trace = await cancelled_in(scene, "lingerer", "tool idle")
    assert [call["position"] for call in trace["calls"]] == ["lingerer/0", "lingerer/0/0"]


async def cancelled_in(scene: Scene, agent: str, call: str) -> dict[str, Any]:
    """The trace of a step that was cancelled while it was in this call."""
    run = await scene.start(agent, call)
    process = scene.process()
    await scene.steps.client.set_flow_run_state(run.id, Cancelling())
    await scene.until(lambda: ended(process), 5)
    assert (await scene.finished(run)).is_cancelled()
    traces = [trace async for _, trace in TraceStore(store(scene.service)).list(agent)]
    (trace,) = [trace for trace in traces if trace["step_id"] == str(run.id)]
    assert trace["status"] == "cancelled"
    return trace


async def test_cancelling_stops_the_model(scene: Scene) -> None:
    # At that temperature no end is in sight.
    run = await scene.steps.start(input="Count to a thousand.", inference={"max_tokens": 3500, "temperature": 2})
    async with asyncio.timeout(60):
        while not (await scene.state(run)).is_running():
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    await scene.steps.client.set_flow_run_state(run.id, Cancelling())
    state = await scene.finished(run)
    assert state.is_cancelled()
    model_server = scene.service.json("status")["urls"]["model_server"]
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    key = service_key.known(load_settings(home=scene.service.home))
    assert key is not None
    headers = {"authorization": f"Bearer {key.get_secret_value()}"}
    async with httpx.AsyncClient(headers=headers) as client:  # one generation at a time: it would wait for the other
        answer = await client.post(f"{model_server}/v1/chat/completions", json=body, timeout=10)
    assert answer.status_code == 200


LIVING = Standing("s", 1, 0, None, 0.5, True)
DEAD = Standing("s", 1, 0, None, 5.0, False)
CRASHED_TWICE = Standing("s", 3, 2, None, 50.0, False)


@pytest.mark.parametrize(
    ("state", "age", "standing", "action"),
    [
        (StateType.RUNNING, 100, LIVING, None),
        (StateType.RUNNING, 100, DEAD, Action.CRASH),
        (StateType.RUNNING, 1, DEAD, None),  # the attempt before this start
        (StateType.RUNNING, STARTING_SECONDS + 1, CRASHED_TWICE, Action.CRASH),
        (StateType.RUNNING, 1, None, None),
        (StateType.RUNNING, STARTING_SECONDS + 1, None, Action.CRASH),
        (StateType.PENDING, PENDING_SECONDS - 1, DEAD, None),
        (StateType.PENDING, PENDING_SECONDS + 1, None, Action.RESUBMIT),
        (StateType.CRASHED, 0.5, DEAD, None),
        (StateType.CRASHED, 1.5, DEAD, Action.REVIVE),
        (StateType.CRASHED, 1.5, None, Action.REVIVE),
        (StateType.CRASHED, 3.5, CRASHED_TWICE, None),
        (StateType.CRASHED, 4.5, CRASHED_TWICE, Action.REVIVE),
        (StateType.CRASHED, 0, Standing("s", 9, 4, None, 9.0, False), Action.GIVE_UP),
        (StateType.CRASHED, LIVING_SECONDS - 1, LIVING, None),
        (StateType.CRASHED, LIVING_SECONDS + 1, LIVING, Action.RESTORE),
        (StateType.CANCELLING, 0.5, LIVING, None),
        (StateType.CANCELLING, 2, LIVING, Action.ASK),
        (StateType.CANCELLING, 5, DEAD, Action.CANCEL),
        (StateType.CANCELLING, 5, None, None),
    ],
)
def test_what_a_run_needs(state: StateType, age: float, standing: Standing | None, action: Action | None) -> None:
    assert Judge(limit=5, grace=1.0).action(state, age, standing) is action


@pytest.mark.parametrize(
    ("grace", "crashes", "pause"), [(1.0, 0, 1.0), (1.0, 3, 8.0), (1.0, 5000, 30.0), (60.0, 3, 60.0)]
)
def test_a_run_that_crashes_often_is_waited_for_half_a_minute(grace: float, crashes: int, pause: float) -> None:
    standing = Standing("s", attempt=1, crashes=crashes, holder=None, age=9.0, alive=False)
    judge = Judge(limit=10_000, grace=grace)
    assert judge.pause(standing) == pause
    assert pause < runs.REVIVE_SECONDS
