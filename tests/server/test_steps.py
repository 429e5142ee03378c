"""/v1/steps on real servers, with steps that the test moves by hand: views, decisions, events live and exactly once."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from flows.answering import Responses
from flows.waiting import People
from storage.store import ObjectStore
from storage.traces import TraceStore
from tests.agents.test_events import away
from tests.server.stage import (
    Sent,
    Stage,
    Step,
    call,
    eventually,
    listen,
    sockets,
    staged,
    types,
    until_ended,
    until_killed,
)
from timestep import steps
from timestep.agents.record.events import PER_ATTEMPT
from timestep.agents.record.waiting import Decision, Kind, Verdict
from timestep.database.engine import Database
from timestep.errors import ConflictError, NotFoundError, UsageError
from timestep.keys import Keys, Scope
from timestep.server import sse
from timestep.steps import CallDecision, decisions, traces
from timestep.steps.views import ANSWER_SECONDS

NOBODY = "00000000-0000-0000-0000-00000000000f"

Make = Callable[..., Awaitable[Step]]


@pytest.fixture(scope="module")
def stage(postgres_url: str) -> Iterator[Stage]:
    with staged(postgres_url, "prefect") as stage:
        asyncio.run(migrated(postgres_url))
        stage.start("http")
        yield stage


async def migrated(database_url: str) -> None:
    database = Database(database_url)
    await database.migrate()
    await database.close()


@pytest.fixture
async def make(stage: Stage) -> AsyncIterator[Make]:
    """Makes a step in the state RUNNING, or another."""
    database = Database(stage.database_url)
    async with PrefectClient(api=stage.prefect_api) as client:

        async def make(
            kind: StateType = StateType.RUNNING, flow: str = "step", name: str = "staged", **parameters: Any
        ) -> Step:
            flow_id = await client.create_flow_from_name(flow)
            # By another name than the service's own, whose runs are started again without a process.
            deployment = await client.create_deployment(flow_id, name=name, enforce_parameter_schema=False)
            run = await client.create_flow_run_from_deployment(deployment, parameters=parameters)
            step = Step(client, database, run.id)
            if kind is not StateType.SCHEDULED:
                await step.reach(kind)
            return step

        yield make
    await database.close()


@pytest.fixture
async def http(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stage.url, timeout=20) as client:
        yield client


@pytest.mark.parametrize(("before", "after"), [(StateType.CANCELLING, "Cancelled"), (StateType.RUNNING, "Scheduled")])
async def test_a_run_that_crashed_while_it_was_cancelled_is_not_started_again(
    make: Make, before: StateType, after: str
) -> None:
    step = await make(flow="batch", name="batch")
    for kind in (before, StateType.RUNNING, StateType.CRASHED):
        await step.reach(kind)

    async def looked_after() -> bool:
        return (await step.states())[-1] != "Crashed"

    await eventually(looked_after, 30)
    assert (await step.states())[-1] == after


async def test_a_step_is_seen_as_people_know_it(make: Make, http: httpx.AsyncClient) -> None:
    step = await make(StateType.SCHEDULED, agent="planner", mode="inference")

    async def seen() -> dict[str, Any]:
        response = await http.get(f"/{step.id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    first = await seen()
    assert (first["id"], first["object"], first["agent"], first["mode"]) == (step.name, "step", "planner", "inference")
    assert (first["status"], first["pending"], first["output"], first["error"]) == ("not_started", [], None, None)
    for kind, status in (
        (StateType.RUNNING, "in_progress"),
        (StateType.CRASHED, "in_progress"),  # the service starts it again
        (StateType.CANCELLING, "in_progress"),
        (StateType.CANCELLED, "cancelled"),
        (StateType.FAILED, "failed"),
    ):
        await step.reach(kind)
        assert (await seen())["status"] == status
    last = await seen()
    assert last["error"] == "It broke." and last["ended"]


async def test_metrics_count_steps_by_state(make: Make, stage: Stage) -> None:
    seen: list[float] = []

    async def counted() -> bool:  # what Prefect said counts for some seconds
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{stage.port}", timeout=20) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        seen.extend(float(line.split()[1]) for line in lines if line.startswith('timestep_steps{state="paused"}'))
        return bool(seen)

    async def grown() -> bool:
        return await counted() and seen[-1] == seen[0] + 1

    await eventually(counted, 60)
    await make(StateType.PAUSED)
    await make(StateType.PAUSED, flow="batch")
    await eventually(grown, 60)


async def test_what_waits_is_listed_with_what_can_be_decided(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    question = call(Kind.QUESTION, 0, '{"question": "Which one?"}')
    await step.ask(question)
    await step.suspend(question)
    first = (await http.get(f"/{step.id}")).json()
    assert first["status"] == "waiting_feedback"
    assert first["pending"] == [
        question.model_dump(mode="json") | {"verdicts": ["answer"], "digest": question.digest, "deadline_at": None}
    ]
    await step.ask(call(number=1))
    assert (await http.get(f"/{step.id}")).json()["status"] == "waiting_approval"


async def test_the_last_decision_lets_the_step_go_on(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    calls = [call(), call(Kind.QUESTION, 1), call(Kind.CUT, 2), call(number=3)]
    await step.ask(*calls)
    await step.suspend(*calls)
    first = {"call": calls[0].call_id, "verdict": "approve", "always": True, "digest": calls[0].digest}
    response = await http.post(f"/{step.id}/approvals", json={**first, "by": "ada"})
    assert response.status_code == 200, response.text
    assert [(one["call_id"], one["decided_by"]) for one in response.json()["decided"]] == [(calls[0].call_id, "ada")]
    assert len(response.json()["pending"]) == 3
    assert (await step.states())[-1] == "Suspended"
    decisions = [
        {"call": calls[1].position, "verdict": "answer", "text": "the blue one"},
        {"call": calls[2].call_id, "verdict": "result", "text": "it was sent"},
        {"call": calls[3].call_id, "verdict": "reject", "text": "not to bob"},
    ]
    response = await http.post(f"/{step.id}/approvals", json={"decisions": decisions})
    assert response.status_code == 200, response.text
    assert (response.json()["status"], response.json()["pending"]) == ("in_progress", [])
    assert (await step.states())[-1] == "Resuming"
    again = await http.post(f"/{step.id}/approvals", json={"decisions": decisions})
    assert again.status_code == 200


async def test_several_who_decide_at_once_resume_it_once(make: Make, stage: Stage) -> None:
    step = await make()
    calls = [call(number=number) for number in range(4)]
    await step.ask(*calls)
    await step.suspend(*calls)
    async with httpx.AsyncClient(base_url=stage.url, timeout=30) as client:
        posts = [
            client.post(f"/{step.id}/approvals", json={"call": one.call_id, "verdict": "approve", "by": who})
            for one in calls
            for who in ("ada", "bob")
        ]
        assert {response.status_code for response in await asyncio.gather(*posts)} == {200}
    await asyncio.sleep(1.5)  # a sweep later
    assert (await step.states()).count("Resuming") == 1


async def test_what_was_decided_otherwise_stays(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    await step.ask(call(), call(number=1))
    approve = {"call": call().call_id, "verdict": "approve", "by": "ada"}
    assert (await http.post(f"/{step.id}/approvals", json=approve)).status_code == 200
    late = await http.post(f"/{step.id}/approvals", json={"call": call().call_id, "verdict": "reject", "text": "no"})
    assert late.status_code == 409
    assert "was approved by ada" in late.json()["error"]["message"]
    other = call(arguments='{"to": "eve"}')
    body = {"call": call(number=1).call_id, "verdict": "approve", "digest": other.digest}
    refused = await http.post(f"/{step.id}/approvals", json=body)
    assert refused.status_code == 409
    assert [one["status"] for one in (await http.get(f"/{step.id}")).json()["decided"]] == ["decided"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "'verdict'"),
        ({"decisions": []}, 400, "'decisions'"),
        ({"decisions": "approve"}, 400, "'decisions'"),
        ({"verdict": "aprove", "call": "call_approval_0"}, 400, "'verdict'"),
        ({"verdict": "approve"}, 400, "Say which call"),
        ({"verdict": "approve", "call": "call_approval_0", "reson": "x"}, 400, "'reson'"),
        ({"verdict": "approve", "call": "call_approval_0", "by": 3}, 400, "'by'"),
        ({"verdict": "answer", "text": "yes", "call": "call_approval_0"}, 400, "only by 'approve' or 'reject'"),
        ({"verdict": "answer", "call": "call_question_1"}, 400, "needs a text"),
        ({"verdict": "approve", "call": "call_9"}, 404, "No call 'call_9'"),
        ([], 400, "no JSON object"),
        ({"decisions": [3]}, 400, "dictionary"),
    ],
)
async def test_a_decision_that_makes_no_sense_is_refused(
    body: Any, status: int, says: str, make: Make, http: httpx.AsyncClient
) -> None:
    step = await make()
    await step.ask(call(), call(Kind.QUESTION, 1))
    response = await http.post(f"/{step.id}/approvals", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert says in error["message"] and error["type"] == "invalid_request_error"
    assert (await http.get(f"/{step.id}")).json()["decided"] == []


async def test_a_body_is_json_whatever_it_says_it_is(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    await step.ask(call())
    assert (await http.post(f"/{step.id}/approvals", content="verdict=approve")).status_code == 400
    form = {"content-type": "application/x-www-form-urlencoded"}  # as curl -d has it
    response = await http.post(f"/{step.id}/approvals", content='{"verdict": "approve"}', headers=form)
    assert response.status_code == 200, response.text


async def test_nothing_is_decided_where_one_decision_is_refused(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    await step.ask(call(), call(number=1))
    decisions = [{"call": call().call_id, "verdict": "approve"}, {"call": call(number=1).call_id, "verdict": "answer"}]
    assert (await http.post(f"/{step.id}/approvals", json={"decisions": decisions})).status_code == 400
    assert (await http.get(f"/{step.id}")).json()["decided"] == []


async def test_of_calls_with_one_id_the_position_or_the_digest_says_which(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    one, two = call(), call(number=1, arguments='{"to": "eve"}').model_copy(update={"call_id": call().call_id})
    await step.ask(one, two)
    by_id = {"call": one.call_id, "verdict": "approve"}
    refused = await http.post(f"/{step.id}/approvals", json=by_id)
    assert refused.status_code == 400
    assert f"'{one.position}' or '{two.position}'" in refused.json()["error"]["message"]
    response = await http.post(f"/{step.id}/approvals", json=by_id | {"digest": two.digest, "by": "a\x00b"})
    assert response.status_code == 200, response.text
    assert [one["position"] for one in response.json()["decided"]] == [two.position]
    assert response.json()["decided"][0]["decided_by"] == "a�b"


async def test_a_bad_step_does_not_hold_up_the_others(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = await make(), await make()
    for step in (bad, good):
        await step.ask(call())
        await step.suspend(call())
    gone_on, went = [], decisions.go_on

    async def go_on(client: PrefectClient, database: Database, run_id: UUID) -> bool:
        gone_on.append(run_id)
        if run_id == bad.id:
            raise KeyError("what is stored makes no sense")
        return await went(client, database, run_id)

    async def all_decided(database: Database, step_ids: Iterable[str]) -> list[str]:
        return [bad.name, good.name]

    monkeypatch.setattr(decisions, "go_on", go_on)
    monkeypatch.setattr(decisions, "decided", all_decided)
    await steps.sweep(good.client, good.database)
    assert gone_on == [bad.id, good.id]
    assert bad.name in caplog.text


async def test_an_ended_step_takes_no_decision(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    await step.ask(call())
    await step.reach(StateType.CANCELLED)
    response = await http.post(f"/{step.id}/approvals", json={"verdict": "approve"})
    assert (response.status_code, (await http.get(f"/{step.id}")).json()["pending"]) == (409, [])


async def test_unknown_steps_are_not_found(make: Make, http: httpx.AsyncClient) -> None:
    other = await make(flow="batch")
    for unknown in (NOBODY, "nonsense", other.name):
        for request in (
            http.get(f"/{unknown}"),
            http.get(f"/{unknown}/events"),
            http.post(f"/{unknown}/approvals", json={"verdict": "approve"}),
        ):
            response = await request
            assert response.status_code == 404, response.text
            assert response.json()["error"]["code"] == "step_not_found"


async def test_a_key_changes_what_becomes_of_those_steps_only_that_it_may_start(
    make: Make, http: httpx.AsyncClient
) -> None:
    step = await make(agent="planner", mode="training")
    thinks = await make(agent="planner")
    await thinks.ask(call())
    database = Keys(step.database)
    keys = {scope: await database.create(scope, [scope]) for scope in (Scope.INFERENCE, Scope.TRAINING)}

    async def asked(scope: Scope, one: Step, what: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {keys[scope][1]}"}
        return await http.request("GET" if what == "" else "POST", f"/{one.id}{what}", headers=headers, json=body)

    async def answers(status: int) -> bool:  # what the server knew of keys counts for a second
        return (await http.get(f"/{step.id}")).status_code == status

    await eventually(lambda: answers(401))
    try:
        for scope, other in ((Scope.INFERENCE, step), (Scope.TRAINING, thinks)):
            for what, body in (("/cancel", None), ("/resume", None), ("/approvals", {"verdict": "approve"})):
                refused = await asked(scope, other, what, body)
                assert refused.status_code == 403, refused.text
                assert f"POST /v1/steps/{other.id}{what} needs a key of scope" in refused.json()["error"]["message"]
            assert (await asked(scope, other, "")).json()["status"] in ("in_progress", "waiting_approval")
        assert (await asked(Scope.TRAINING, step, "/cancel")).status_code == 200
        assert (await asked(Scope.INFERENCE, thinks, "/approvals", {"verdict": "approve"})).status_code == 200
    finally:
        for row, _ in keys.values():
            await database.revoke(row.id, forget=True)

        await eventually(lambda: answers(200))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:{port}", "origin": "http://localhost:{port}"}, 200),
    ],
)
async def test_prefects_server_is_asked_by_no_other_sites_pages(
    headers: dict[str, str], status: int, stage: Stage
) -> None:
    sent = {name: value.format(port=stage.prefect_port) for name, value in headers.items()}
    async with httpx.AsyncClient(headers=sent) as client:
        asked = await client.post(f"{stage.prefect_api}/flow_runs/filter", json={})
        assert asked.status_code == status, asked.text
        origin = {"origin": sent.get("origin", "https://evil.example"), "access-control-request-method": "POST"}
        preflight = await client.options(f"{stage.prefect_api}/flow_runs/filter", headers=origin)
        assert preflight.status_code == status


async def test_a_decision_that_came_before_the_suspension_still_resumes_it(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    await step.ask(call())
    assert (await http.post(f"/{step.id}/approvals", json={"verdict": "approve"})).status_code == 200
    await step.suspend(call())

    async def resumed() -> bool:
        return (await step.states())[-1] == "Resuming"

    await eventually(resumed)


async def test_a_deadline_decides_by_default(make: Make) -> None:
    step = await make()
    await step.ask(call())
    await step.suspend(call())
    async with step.database.session() as session:
        update = "update approvals set deadline_at = now(), default_verdict = 'reject' where step_id = :id"
        await session.execute(text(update), {"id": step.name})

    async def resumed() -> bool:
        return (await step.states())[-1] == "Resuming"

    await eventually(resumed)


async def test_a_run_that_a_person_suspended_is_left_alone(make: Make) -> None:
    step = await make()
    await step.reach(StateType.PAUSED, "Suspended", pause_reschedule=True)
    await asyncio.sleep(2.5)
    assert (await step.states())[-1] == "Suspended"


async def test_the_first_digits_of_an_id_are_enough(make: Make) -> None:
    waiting, running = await make(StateType.SCHEDULED), await make()
    async with running.process():
        pass
    for step in (waiting, running):
        for name in (step.name, step.name[:8], step.name[:13].upper(), step.name.replace("-", "")):
            assert await steps.find(step.client, step.database, name) == step.id
    for bad in (running.name[:7], "not-hex-at-all", ""):
        with pytest.raises(UsageError, match="is no step id"):
            await steps.find(running.client, running.database, bad)
    with pytest.raises(NotFoundError, match="No step '00000000'"):
        await steps.find(running.client, running.database, "00000000")
    async with running.database.session() as session:
        twin = running.name[:8] + NOBODY[8:]
        await session.execute(text("insert into steps (id) values (:id)"), {"id": twin})
    with pytest.raises(UsageError, match=f"the beginning of several steps: .*{twin}"):
        await steps.find(running.client, running.database, running.name[:8])


async def test_cancelling_and_starting_again(make: Make) -> None:
    step = await make()
    await step.ask(call())
    await step.suspend(call())
    with pytest.raises(ConflictError, match="waits for a person"):
        await steps.resume(step.client, step.database, step.id)
    for _ in range(2):
        await steps.cancel(step.client, step.database, step.id)
    assert (await step.states())[-1] == "Cancelled"
    await steps.resume(step.client, step.database, step.id, accept_changes=True)
    assert (await step.states())[-1] == "Scheduled"
    async with step.database.session() as session:
        assert await session.scalar(text("select accept_changes from steps where id = :id"), {"id": step.name})
    with pytest.raises(ConflictError, match="only one that failed or was cancelled"):
        await steps.resume(step.client, step.database, step.id)
    await step.reach(StateType.CRASHED)
    await steps.cancel(step.client, step.database, step.id)
    assert (await step.states())[-1] == "Cancelled"
    await step.reach(StateType.COMPLETED)
    with pytest.raises(ConflictError, match="succeeded already"):
        await steps.cancel(step.client, step.database, step.id)


async def test_a_decision_to_fail_is_kept_until_the_step_has_failed(make: Make, stage: Stage) -> None:
    step, cut = await make(), call(Kind.CUT)
    fail = Decision(verdict=Verdict.FAIL, text="no")

    async def decided() -> dict[str, Decision]:
        """As the next process of the step has it."""
        with temporary_settings({PREFECT_API_URL: stage.prefect_api}):
            return await People(step.database, step).decisions([cut])  # type: ignore[arg-type]

    step.step_id, step.attempt = step.name, 1
    await step.reach(StateType.FAILED)  # for another reason, earlier
    await step.reach(StateType.RUNNING)
    await step.ask(cut)
    await step.suspend(cut)
    await steps.decide(step.client, step.database, step.id, [CallDecision(**fail.model_dump())], by="ada")
    for state in (StateType.RUNNING, StateType.CRASHED, StateType.RUNNING):
        await step.reach(state)
        assert await decided() == {cut.position: fail}
    await step.reach(StateType.FAILED)
    await steps.resume(step.client, step.database, step.id)
    assert await decided() == {}
    assert len((await steps.view(step.client, step.database, step.id, "")).pending) == 1


async def test_the_trace_of_a_step_that_is_cancelled_while_it_waits_says_so(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "SETTLED", timedelta(0))
    began = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    url = f"local://{tmp_path}/storage"
    store = TraceStore(ObjectStore.open(url))
    cancelled, waiting = await make(agent="planner"), await make(agent="planner")
    for step in (cancelled, waiting):
        await step.ask(call())
        await step.suspend(call())
        async with step.database.session() as session:
            created = text("update steps set created_at = :began where id = :id")
            await session.execute(created, {"began": began, "id": step.name})
        trace = {"status": "waiting", "error": "It waits.", "messages": ["said"]}
        await store.write(trace, agent="planner", step_id=step.name, when=began)
    await steps.cancel(cancelled.client, cancelled.database, cancelled.id)
    ended = steps.EndedTraces(cancelled.client, cancelled.database, url)
    for _ in range(2):
        await ended.complete()
        trace = await store.read(store.key("planner", cancelled.name, began))
        assert (trace["status"], trace["messages"]) == ("cancelled", ["said"]) and trace["error"] != "It waits."
    assert (await store.read(store.key("planner", waiting.name, began)))["status"] == "waiting"


async def test_tokens_arrive_before_the_step_ends(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    came: list[Sent] = []
    async with step.process() as log, http.stream("GET", f"/{step.id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        source = listen(response)
        log.publish("call.started", "a/0", kind="model-call", name="m", attempt=1)
        came.append(await anext(source))
        for number in range(30):
            log.publish("output_text.delta", "a/0", delta=f"{number} ")
            while len("".join(event.data.get("delta", "") for event in came).split()) <= number:
                came.append(await asyncio.wait_for(anext(source), 5))
        log.publish("step.finished", status="succeeded", output="done")
        came += [event async for event in source]
    assert [came[0].id, came[-1].type] == [PER_ATTEMPT + 1, "step.finished"]
    assert [event.id for event in came] == sorted({event.id for event in came})
    assert came[1].data["type"] == "output_text.delta" and came[1].data["position"] == "a/0"


async def test_every_event_comes_once_over_a_killed_server(make: Make, stage: Stage) -> None:
    step = await make()
    came: list[Sent] = []
    writing = True

    async def write() -> None:
        async with step.process() as log:
            for number in range(150):
                log.publish("output_text.delta", f"a/{number % 7}", delta=f"{number} ")
                await asyncio.sleep(0.03)
            while writing:
                await asyncio.sleep(0.05)
            log.publish("step.finished", status="succeeded", output=None)

    writer = asyncio.create_task(write())
    for _ in range(2):
        listening = asyncio.create_task(until_killed(f"{stage.url}/{step.id}", came[-1].id if came else 0, came))
        seen = len(came)
        while len(came) < seen + 5:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(stage.end, "http")
        await listening
        await asyncio.to_thread(stage.start, "http")
    writing = False
    await until_killed(f"{stage.url}/{step.id}", came[-1].id, came)
    await writer
    assert [event.id for event in came] == [PER_ATTEMPT + 1 + number for number in range(len(came))]
    said = sorted("".join(event.data.get("delta", "") for event in came).split(), key=int)
    assert said == [str(number) for number in range(150)]
    assert came[-1].type == "step.finished"


async def test_a_stream_begins_after_the_event_that_is_named(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    async with step.process() as log:
        for number in range(3):
            log.publish("call.finished", f"a/{number}")
        log.publish("step.finished", status="succeeded")
    for how in ({"params": {"after": PER_ATTEMPT + 2}}, {"headers": {"Last-Event-ID": str(PER_ATTEMPT + 2)}}):
        async with http.stream("GET", f"/{step.id}/events", **how) as response:  # type: ignore[arg-type]
            assert [event.id async for event in listen(response)] == [PER_ATTEMPT + 3, PER_ATTEMPT + 4]
    for bad in ("x", "-1", "1.5", "٣", "9" * 30):
        refused = await http.get(f"/{step.id}/events", params={"after": bad})
        assert refused.status_code == 400, bad


async def test_who_comes_back_after_the_end_is_told_to_stay_away(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    async with step.process() as log:
        log.publish("step.started", attempt=1)
        log.publish("step.finished", status="failed")
    await step.reach(StateType.FAILED)
    done = await http.get(f"/{step.id}/events", headers={"Last-Event-ID": str(PER_ATTEMPT + 2)})
    assert done.status_code == 204
    async with http.stream("GET", f"/{step.id}/events") as response:
        assert types([event async for event in listen(response)]) == ["step.started", "step.finished"]


async def test_a_step_that_ends_without_a_word_ends_its_streams(make: Make, http: httpx.AsyncClient) -> None:
    step = await make()
    async with http.stream("GET", f"/{step.id}/events") as response:
        source = listen(response)
        await asyncio.sleep(0.5)
        await step.reach(StateType.FAILED)
        events = [event async for event in source]
    assert [(event.id, event.type, event.data["status"], event.data["error"]) for event in events] == [
        (0, "step.finished", "failed", "It broke.")
    ]


async def test_clients_that_leave_leave_nothing_behind(make: Make, stage: Stage) -> None:
    step, quiet = await make(), await make()
    pid = stage.processes["http"].pid
    async with step.process() as log:
        log.publish("step.started", attempt=1)
        await until_idle(stage)
        before = sockets(pid)
        listeners = [
            asyncio.create_task(until_killed(f"{stage.url}/{one.id}", 0, []))
            for one in (step, quiet)
            for _ in range(20)
        ]

        async def came() -> bool:
            return sockets(pid) >= before + 40

        await eventually(came, 30)
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)

        async def left() -> bool:
            return sockets(pid) <= before + 8  # the pools keep a few

        await eventually(left, 15)


async def until_idle(stage: Stage) -> None:
    async with httpx.AsyncClient(base_url=stage.url) as client:
        await client.get(f"/{NOBODY}")


async def test_told_to_stop_the_server_waits_for_no_stream(make: Make, stage: Stage) -> None:
    step = await make()
    came: list[Sent] = []
    async with step.process() as log:
        log.publish("step.started", attempt=1)
        listening = asyncio.create_task(until_ended(f"{stage.url}/{step.id}", 0, came))
        while not came:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(stage.end, "http", signal.SIGTERM)
        await listening  # a stream that the server breaks off has no end, which is an error here
        await asyncio.to_thread(stage.start, "http")


async def test_while_the_database_is_away_it_says_so_and_streams_go_on_after(make: Make, stage: Stage) -> None:
    step = await make()
    came: list[Sent] = []
    async with step.process() as log:
        log.publish("step.started", attempt=1)
        listening = asyncio.create_task(until_killed(f"{stage.url}/{step.id}", 0, came))
        while not came:
            await asyncio.sleep(0.02)
        async with away(stage.database_url):
            async with httpx.AsyncClient(base_url=stage.url, timeout=30) as client:
                response = await client.get(f"/{step.id}")
            assert response.status_code == 503
            assert "\n" not in response.json()["error"]["message"]
            log.publish("step.finished", status="succeeded")
        await asyncio.wait_for(listening, 15)
    assert types(came) == ["step.started", "step.finished"]


async def test_while_prefect_hangs_it_says_so_and_streams_go_on(make: Make, stage: Stage) -> None:
    step = await make()
    came: list[Sent] = []
    async with step.process() as log:
        log.publish("step.started", attempt=1)
        listening = asyncio.create_task(until_killed(f"{stage.url}/{step.id}", 0, came))
        while not came:
            await asyncio.sleep(0.02)
        prefect = stage.processes["prefect"]
        prefect.send_signal(signal.SIGSTOP)
        try:
            async with httpx.AsyncClient(base_url=stage.url, timeout=30) as client:
                response = await client.get(f"/{step.id}")
            assert response.status_code == 503
            assert "No Prefect server answers" in response.json()["error"]["message"]
            log.publish("step.finished", status="succeeded")
            await asyncio.wait_for(listening, 2)
        finally:
            prefect.send_signal(signal.SIGCONT)
    assert types(came) == ["step.started", "step.finished"]


async def test_a_busy_prefect_is_waited_for_longer_than_one_that_is_away(make: Make, stage: Stage) -> None:
    step = await make()
    engine = create_async_engine(Database(stage.database_url).prefect_url)
    async with httpx.AsyncClient(base_url=stage.url, timeout=60) as client:
        async with engine.begin() as busy:
            await busy.execute(text("lock table flow_run in access exclusive mode"))  # its health asks for less
            asking = asyncio.create_task(client.get(f"/{step.id}"))
            await asyncio.sleep(ANSWER_SECONDS + 2)
            assert not asking.done()
        assert (await asking).status_code == 200
    await engine.dispose()


async def test_a_quiet_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.05)
    closed = asyncio.Event()

    async def nothing() -> Any:
        try:
            await asyncio.sleep(30)
            yield None
        finally:
            closed.set()

    stream = sse.framed(nothing(), asyncio.Event(), sse.frame)
    assert [await anext(stream) for _ in range(2)] == [b": \n\n"] * 2
    await stream.aclose()
    assert closed.is_set()


async def test_a_batch_stops_the_steps_that_a_process_before_it_started(make: Make, stage: Stage) -> None:
    batch = await make(flow="batch")
    flow_id = await batch.client.create_flow_from_name("step")
    deployment = await batch.client.create_deployment(flow_id, name="staged", enforce_parameter_schema=False)
    begun = [
        await batch.client.create_flow_run_from_deployment(deployment, idempotency_key=f"{started_by}-1")
        for started_by in (batch.id, NOBODY)
    ]
    lease, services = Mock(step_id=batch.name), Mock(database=batch.database)
    await Responses(lease, batch.client, services).stop()
    states = [(await batch.client.read_flow_run(run.id)).state for run in begun]
    assert [state.name for state in states if state is not None] == ["Cancelled", "Scheduled"]


async def test_a_version_that_a_training_starts_from_is_not_deleted_until_its_end(make: Make, stage: Stage) -> None:
    waiting = await make(StateType.SCHEDULED, mode="training", agent="pupil", model="local/pupil@2")
    begun = await make(mode="training", agent="heir", model="local/pupil", training={"own_line": True})
    await make(mode="inference", agent="pupil", model="local/pupil@4")
    async with begun.process(), begun.database.session() as session:
        start = {"start": {"name": "pupil", "version": 3}, "base": "b", "served": None}
        note = text("insert into units (step_id, position, kind, name, fingerprint, attempt, result, finished_at) "
                    "values (:id, 'training/origin', 'training', 'origin', '', 1, :result, now())")  # fmt: skip
        await session.execute(note, {"id": begun.name, "result": json.dumps(start)})

    async with httpx.AsyncClient(base_url=stage.url.removesuffix("steps"), timeout=30) as http:

        async def refused(model: str) -> str | None:
            """Why it can't be deleted; None: only since there is no model server here."""
            said = await http.delete(f"models/local/{model}")
            if said.status_code == 404:
                return None
            assert said.status_code == 409
            return str(said.json()["error"]["message"])

        assert "'local/pupil@2'" in str(await refused("pupil@2")) and waiting.name in str(await refused("pupil@2"))
        assert "'local/pupil@3'" in str(await refused("pupil@3")) and begun.name in str(await refused("pupil@3"))
        assert await refused("pupil") is not None  # all of its versions
        assert [await refused(other) for other in ("pupil@1", "pupil@4", "pupil@22", "heir")] == [None] * 4
        await waiting.reach(StateType.CANCELLED)
        await begun.reach(StateType.COMPLETED)
        assert [await refused(model) for model in ("pupil@2", "pupil@3", "pupil")] == [None] * 3
