"""Steps that wait for people, through the running service: the form, the command line, HTTP, crashes in between."""

import asyncio
import signal
import sys
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed, Scheduled

from flows.forms import submitted
from storage.store import ObjectStore
from storage.traces import TraceStore
from tests.conftest import ROOT, Service, environment
from tests.flows.conftest import Steps
from timestep.agents.types import StepOutput


async def suspended(service: Service, steps: Steps, **parameters: Any) -> tuple[FlowRun, dict[str, Any]]:
    """A new step, once it waits for a person, and its view."""
    service.clear_calls()
    run = await steps.start(input="go", **parameters)
    return run, await waiting(service, run.id)


async def waiting(service: Service, run_id: UUID) -> dict[str, Any]:
    """The step's view, once it waits."""
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while True:
            view: dict[str, Any] = (await client.get(f"{service.api}/steps/{run_id}")).json()
            if view["pending"] and view["status"].startswith("waiting"):
                return view
            assert view.get("status") not in ("failed", "cancelled", "succeeded"), view
            await asyncio.sleep(0.1)


async def output(steps: Steps, run: FlowRun) -> StepOutput:
    return await steps.output(await steps.finished(run, 90))


async def test_the_form_shows_the_call_and_its_submission_lets_the_step_go_on(service: Service, steps: Steps) -> None:
    run, view = await suspended(service, steps, agent="cleaner")
    assert view["status"] == "waiting_approval"
    assert [(call["tool"], call["arguments"]) for call in view["pending"]] == [("delete", '{"path": "a"}')]
    inputs = {
        item.key.rpartition("-")[2]: item.decoded_value
        for item in await steps.client.filter_flow_run_input(run.id, "suspended-", 100, set())
    }
    group = inputs["schema"]["properties"]["call_1"]
    assert group["title"] == "1 · delete" and 'path: `"a"`' in group["description"]
    found = [t async for _, t in TraceStore(store(service)).list("cleaner") if t["step_id"] == str(run.id)]
    assert [trace["status"] for trace in found] == ["waiting"]
    state = (await steps.client.read_flow_run(run.id)).state
    assert state is not None and state.is_paused() and state.state_details.pause_timeout is None, "nothing expires"
    choice = {"decision": "approve", "reason": "", "always": True}
    await steps.client.resume_flow_run(run.id, {"call_1": choice})
    done = await output(steps, run)
    assert done.output == "cleaned"
    # Approved for the whole run: the second call of the tool was not asked about.
    assert service.calls == ["model 0", "tool delete a", "model 1", "tool delete b", "model 2"]
    assert await submitted(steps.client, run.id) == []


@pytest.mark.usefixtures("controlflow_agents")
async def test_a_controlflow_agent_waits_for_its_approval_and_goes_on(service: Service, steps: Steps) -> None:
    run, view = await suspended(service, steps, agent="approver")
    assert view["status"] == "waiting_approval"
    assert [(call["position"], call["tool"]) for call in view["pending"]] == [("approver/0/0", "delete")]
    await steps.client.resume_flow_run(run.id, {"call_1": {"decision": "approve", "reason": "", "always": False}})
    done = await output(steps, run)
    assert (done.agent, done.output) == ("approver", "cleaned")
    assert service.calls == ["model 0", "tool delete a", "model 1"]
    trace = await TraceStore(store(service)).read(done.artifacts["trace"])
    assert trace["status"] == "completed"
    assert [call["position"] for call in trace["calls"]] == ["approver/0", "approver/0/0", "approver/1"]


def store(service: Service) -> ObjectStore:
    return ObjectStore.open(f"local://{service.home}/storage")


@pytest.mark.long
async def test_a_rejection_by_command_line_tells_the_model_why(service: Service, steps: Steps) -> None:
    run, view = await suspended(service, steps, agent="cleaner")
    short, call = str(run.id)[:8], view["pending"][0]["call_id"]
    shown = service.run("show", short).stdout
    assert "waiting_approval" in shown and f"timestep approve {short} --call {call}" in shown
    assert "can't be decided by 'answer'" in service.run("answer", short, "x", check=False).stderr
    service.run("approve", short, "--call", call, "--reject", "not on a Friday")
    second = await waiting(service, run.id)
    assert [call["arguments"] for call in second["pending"]] == ['{"path": "b"}']
    refused = service.run("approve", short, "--call", call, check=False)
    assert refused.returncode == 1 and "was rejected ('not on a Friday') by" in refused.stderr
    service.run("approve", short)
    done = await output(steps, run)
    assert [call.output for call in done.tool_calls] == [
        "A person rejected this call: not on a Friday",
        "deleted b",
    ]
    assert service.calls == ["model 0", "model 1", "tool delete b", "model 2"]


@pytest.mark.long
async def test_the_command_line_says_what_is_asked_and_leaves_a_waiting_step_alone(
    service: Service, steps: Steps
) -> None:
    command = [sys.executable, "-m", "timestep", "step", "go", "--agent", "cleaner", "--home", str(service.home)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT, env=environment()
    )
    assert process.stderr is not None
    seen = ""
    async with asyncio.timeout(60):
        while "timestep approve" not in seen:
            seen += (await process.stderr.readline()).decode()
    assert 'waits      cleaner: delete({"path": "a"})' in seen
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGINT
    step = seen.splitlines()[0].rpartition("/")[2]
    assert (await waiting(service, UUID(step)))["status"] == "waiting_approval"
    service.run("cancel", step[:8])
    async with asyncio.timeout(30):
        while "cancelled" not in service.run("show", step[:8]).stdout:
            await asyncio.sleep(0.2)


async def test_many_who_approve_at_once_run_the_call_once(service: Service, steps: Steps) -> None:
    run, view = await suspended(service, steps, agent="cleaner")
    body = {"call": view["pending"][0]["call_id"], "verdict": "approve", "always": True}
    form = {"call_1": {"decision": "approve", "reason": "", "always": True}}
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"{service.api}/steps/{run.id}/approvals"
        by_http = [client.post(url, json=body | {"by": f"{n}"}) for n in range(8)]
        by_form = [steps.client.resume_flow_run(run.id, form) for _ in range(4)]
        answers = await asyncio.gather(*by_http, *by_form, return_exceptions=True)
    assert [getattr(answer, "status_code", answer) for answer in answers[:8]] == [200] * 8
    # Of several who submit the form, Prefect takes one.
    assert all(isinstance(a, PrefectHTTPStatusError) for a in answers[8:] if isinstance(a, BaseException)), answers
    await output(steps, run)
    assert service.calls == ["model 0", "tool delete a", "model 1", "tool delete b", "model 2"]


async def test_a_form_submitted_before_a_crash_counts_after_it(service: Service, steps: Steps) -> None:
    run, view = await suspended(service, steps, agent="pair")
    assert [call["kind"] for call in view["pending"]] == ["approval", "question"]
    pool = "timestep"
    # Nobody takes up what is scheduled now: the run crashes before anything has read the form.
    await set_paused(steps, pool, True)
    try:
        form = {"call_1": {"decision": "approve", "reason": "", "always": False}, "call_2": {"answer": "blue"}}
        await steps.client.resume_flow_run(run.id, form)
        # Prefect forgets with this that the suspension was over.
        await steps.client.set_flow_run_state(run.id, Crashed(), force=True)
        await steps.client.set_flow_run_state(run.id, Scheduled(), force=True)
    finally:
        await set_paused(steps, pool, False)
    done = await output(steps, run)
    assert [call.output for call in done.tool_calls] == ["deleted x", "blue"]
    assert service.calls == ["model 0", "tool delete x", "model 1"]


async def set_paused(steps: Steps, pool: str, paused: bool) -> None:
    await steps.client.update_work_pool(pool, WorkPoolUpdate(is_paused=paused))


async def test_nobody_in_time_is_the_default(service: Service, steps: Steps) -> None:
    service.clear_calls()
    inference = {"approval_deadline_hours": 0.0001, "approval_default": "reject"}
    _, done = await steps.run(input="go", agent="pair", inference=inference)
    assert [call.output for call in done.tool_calls] == [
        "A person rejected this call: Nobody decided before the deadline.",
        "Nobody answered before the deadline.",
    ]


async def test_a_call_cut_in_the_middle_is_a_persons_to_settle(service: Service, steps: Steps) -> None:
    run, _ = await suspended(service, steps, agent="payer")
    service.run("approve", str(run.id))
    # Its process dies in the middle of the payment.
    view = await waiting(service, run.id)
    assert [(call["kind"], call["tool"]) for call in view["pending"]] == [("cut", "pay")]
    assert service.calls == ["model 0", "tool pay 5"]
    assert "waits for an approval" in service.run("approve", str(run.id), check=False).stderr
    service.run("settle", str(run.id), "--result", "paid by hand")
    done = await output(steps, run)
    assert [call.output for call in done.tool_calls] == ["paid by hand"]
    assert service.calls == ["model 0", "tool pay 5", "model 1"]


async def test_a_step_that_waits_holds_up_its_session_and_no_worker(service: Service, steps: Steps) -> None:
    first, _ = await suspended(service, steps, agent="cleaner", session_id="talk")
    second = await steps.start(input="hello", agent="receiver", session_id="talk")
    async with asyncio.timeout(60):
        while (await steps.client.read_flow_run(second.id)).state_name != "Suspended":
            await asyncio.sleep(0.1)
    service.run("approve", str(first.id), "--always")
    assert (await output(steps, first)).output == "cleaned"
    assert (await output(steps, second)).output == "received"
    trace = await TraceStore(store(service)).read((await output(steps, second)).artifacts["trace"])
    said = [message["content"] for message in trace["messages"] if message.get("content")]
    assert said[0] == "go" and said[-3:] == ["cleaned", "hello", "received"]


@pytest.mark.long
async def test_decisions_outlive_the_whole_service(service: Service, steps: Steps) -> None:
    run, view = await suspended(service, steps, agent="pair")
    approval, question = [call["call_id"] for call in view["pending"]]
    service.run("approve", str(run.id), "--call", approval)
    service.run("down")
    ports = ["--port", str(service.port), "--prefect-port", str(service.prefect_port)]
    service.run("up", "--detach", *ports, "--agents", str(service.agents), timeout=180)
    view = await waiting(service, run.id)
    assert view["status"] == "waiting_feedback"
    assert [call["call_id"] for call in view["pending"]] == [question]
    service.run("answer", str(run.id), "green")
    done = await output(steps, run)
    assert [call.output for call in done.tool_calls] == ["deleted x", "green"]
    assert service.calls == ["model 0", "tool delete x", "model 1"]
