"""The service loses and repeats nothing, whatever is killed. `make chaos` runs the same for longer."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.schemas.objects import FlowRun

from tests.chaos.campaign import Campaign
from tests.chaos.learning import Learning
from tests.chaos.stack import Stack, running_stack
from timestep import runs

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as running:
        yield running


async def start(stack: Stack, **parameters: Any) -> str:
    async with runs.connect(stack.settings.prefect_api) as client:
        return str((await runs.start(client, "step/step", parameters)).id)


async def ended(stack: Stack, step: str, seconds: float = 120) -> FlowRun:
    async with runs.connect(stack.settings.prefect_api) as client, asyncio.timeout(seconds):
        while True:
            run = await client.read_flow_run(UUID(step))
            if run.state is not None and run.state.is_final() and not run.state.is_crashed():
                return run
            await asyncio.sleep(0.2)


def begun(stack: Stack, tag: str) -> list[tuple[str, int]]:
    """(call, process) of each call of a step that really began."""
    if not stack.calls.exists():
        return []
    lines = [json.loads(line) for line in stack.calls.read_text().splitlines()]
    return [(line["call"], line["pid"]) for line in lines if line["tag"] == tag and line["moment"] == "begun"]


async def until(condition: Any, seconds: float = 60) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.05)


async def show(stack: Stack, step: str) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        answer = await client.get(f"http://127.0.0.1:{stack.settings.port}/v1/steps/{step}")
        return dict(answer.json()) if answer.is_success else {}


async def waits(stack: Stack, step: str) -> bool:
    return (await show(stack, step)).get("status") == "waiting_approval"


@pytest.mark.timeout(300)
async def test_killed_at_random_points_nothing_is_lost_and_nothing_finished_is_repeated(stack: Stack) -> None:
    counts = await Campaign(stack, kills=3, seed=7).run()
    print(counts.table())
    assert counts.bad == []
    assert counts.steps >= 3
    assert (counts.model_calls, counts.tool_calls) == (4 * counts.steps, 4 * counts.steps)
    assert counts.completions >= counts.steps, "states are noted"


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_process_that_was_stopped_and_superseded_does_nothing_more(stack: Stack) -> None:
    await stack.up()
    step = await start(stack, input="frozen", agent="chaotic")
    await until(lambda: begun(stack, "frozen"))
    pid = (await until(stack.holders))[step]
    os.kill(pid, signal.SIGSTOP)
    stopped = time.time()
    try:
        assert await until(lambda: [p for _, p in begun(stack, "frozen") if p != pid], 90)
    finally:
        with suppress(ProcessLookupError):  # whoever takes over on the same machine wakes it, to end
            os.kill(pid, signal.SIGCONT)
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    run = await ended(stack, step)
    assert run.state is not None
    assert run.state.is_completed(), run.state
    lines = [json.loads(line) for line in stack.calls.read_text().splitlines()]
    since = [line for line in lines if line["moment"] in ("begun", "state") and line["at"] > stopped]
    assert not [line for line in since if line["pid"] == pid]
    assert [line["call"] for line in since if line["tag"] == step][-1] == "COMPLETED", "by its successor"
    # Prefect's own history has nothing but that, and how the successor came to run: Pending is its worker's to set.
    async with runs.connect(stack.settings.prefect_api) as client:
        states = sorted(await client.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    types = [state.type.value for state in states if state.timestamp.timestamp() > stopped]
    assert [kind for kind in types if kind != "PENDING"] == ["CRASHED", "SCHEDULED", "RUNNING", "COMPLETED"]
    calls = [call for call, _ in begun(stack, "frozen")]
    assert len(calls) - len(set(calls)) <= 1, calls  # the one that was cut


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_approvals_survive_the_end_of_everything(stack: Stack) -> None:
    await stack.up()
    step = await start(stack, input="patient", agent="careful")
    await until(lambda: waits(stack, step))
    stack.kill("stack")
    await asyncio.sleep(1)
    await stack.up()
    await until(lambda: waits(stack, step))
    done = await asyncio.to_thread(stack.timestep, "approve", step)
    assert done.returncode == 0, done.stderr
    pid = (await until(stack.holders))[step]
    os.kill(pid, signal.SIGKILL)  # right after it went on
    await until(lambda: ended_or_waits(stack, step))
    if await waits(stack, step):  # cut in the middle of an approved call: a person is asked again
        for call in (await show(stack, step))["pending"]:
            done = await asyncio.to_thread(
                stack.timestep, "settle", step, "--call", call["position"], "--result", "deleted before"
            )
            assert done.returncode == 0, done.stderr
    run = await ended(stack, step)
    assert run.state is not None
    assert run.state.is_completed(), run.state
    calls = [call for call, _ in begun(stack, "patient") if call.startswith("careful/1/")]
    assert len(calls) == len(set(calls)), calls


async def ended_or_waits(stack: Stack, step: str) -> bool:
    return (await show(stack, step)).get("status") in ("waiting_approval", "succeeded", "failed")


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_training_goes_on_from_the_last_finished_epoch(stack: Stack) -> None:
    await stack.up()
    learning = Learning(stack, ("flow run",))
    learnt = await learning.run()
    assert learnt.bad == []
    assert len(set(learnt.attempts)) == 2, "the second by another attempt"
    async with runs.connect(stack.settings.prefect_api) as client:
        assert {task.name for task in await learning.tasks(client)} == {"epoch 1", "epoch 2"}
