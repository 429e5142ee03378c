"""/v1/batches through OpenAI's own client, on the running service: each line once, whatever is killed."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import openai
import psutil
import pytest
from openai import OpenAI
from openai.types import Batch
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from sqlalchemy import select

from deployments.state import load_state
from tests.conftest import Service
from timestep import runs
from timestep.agents.record import identity
from timestep.database.engine import Database
from timestep.database.models import StepRow, UnitRow
from timestep.settings import Settings

MODEL = "local/pupil"  # tiny
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
def client(service: Service) -> OpenAI:
    return OpenAI(base_url=service.api, api_key="none", max_retries=0)


def chat(custom_id: str, text: str = "hi", **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **changes}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(client: OpenAI, lines: Iterable[dict[str, Any] | str]) -> str:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    return client.files.create(file=("lines.jsonl", text.encode()), purpose="batch").id


def start(client: OpenAI, lines: Iterable[dict[str, Any] | str], **changes: Any) -> Batch:
    asked: dict[str, Any] = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **changes}
    return client.batches.create(input_file_id=upload(client, lines), **asked)


def ended(client: OpenAI, batch: Batch, seconds: float = 90) -> Batch:
    deadline = time.monotonic() + seconds
    while batch.status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_batch_answers_every_line_in_order(client: OpenAI) -> None:
    batch = start(client, [chat("c"), chat("a", "what?"), chat("b")], metadata={"of": "the test"})
    assert batch.id.startswith("batch_") and batch.status == "validating"
    done = ended(client, batch)
    assert done.status == "completed" and done.errors is None
    assert done.metadata == {"of": "the test"}
    counts = done.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (3, 3, 0)
    assert done.error_file_id is None
    lines = results(client, done.output_file_id)
    assert [line["custom_id"] for line in lines] == ["c", "a", "b"]
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in lines)
    assert lines[0]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"


def test_a_line_that_fails_fails_alone_and_goes_to_the_error_file(client: OpenAI) -> None:
    lines = [chat("good"), chat("nobody", model="local/nobody"), chat("odd", no_such=1)]
    done = ended(client, start(client, lines))
    assert done.status == "completed"
    counts = done.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (3, 1, 2)
    assert [line["custom_id"] for line in results(client, done.output_file_id)] == ["good"]
    nobody, odd = results(client, done.error_file_id)
    assert nobody["custom_id"] == "nobody" and nobody["response"]["status_code"] == 404
    assert "local/nobody" in nobody["response"]["body"]["error"]["message"]
    assert odd["response"]["status_code"] == 400 and "no_such" in odd["response"]["body"]["error"]["message"]


def test_a_file_that_makes_no_sense_fails_the_batch_line_by_line(client: OpenAI) -> None:
    lines = [chat("a"), "{no json", chat("a"), {**chat("b"), "url": "/v1/embeddings"}, {**chat("c"), "method": "GET"}]
    lines += [chat("d", stream=True), chat("e", model="m\ud800"), chat("f", temperature=float("nan"))]
    done = ended(client, start(client, lines))
    assert done.status == "failed" and done.output_file_id is None
    assert done.errors is not None and done.errors.data is not None
    told = [(error.line, error.code) for error in done.errors.data]
    assert told == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "invalid_url"),
        (5, "invalid_method"),
        (6, "invalid_request"),
        (7, "invalid_json_line"),
        (8, "invalid_json_line"),
    ]
    assert done.id in [batch.id for batch in client.batches.list().data]


def test_an_error_that_quotes_a_nul_ends_the_batch(client: OpenAI) -> None:
    done = ended(client, start(client, [chat("a\0b"), chat("a\0b")]))
    assert done.status == "failed" and done.errors is not None and done.errors.data is not None
    assert [(error.line, error.code) for error in done.errors.data] == [(2, "duplicate_custom_id")]
    answered = ended(client, start(client, [chat("a\0b", model="local/no\0body")]))
    (line,) = results(client, answered.error_file_id)
    assert line["custom_id"] == "a\0b" and line["response"]["status_code"] == 404
    assert answered.request_counts is not None and answered.request_counts.failed == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"extra_body": {"priority": 1}}, "priority"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(client: OpenAI, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        start(client, [chat("a")], **changes)


def test_absent_batches_and_files_are_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="file-nowhere"):
        client.batches.create(input_file_id="file-nowhere", endpoint="/v1/embeddings", completion_window="24h")
    for name in ("batch_no", "batch_" + "0" * 32):
        with pytest.raises(openai.NotFoundError, match=name):
            client.batches.retrieve(name)


def test_lines_for_responses_are_steps(service: Service, client: OpenAI) -> None:
    def line(custom_id: str, **body: Any) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/responses", "body": body}

    lines = [
        line("model", model=MODEL, input="hi", max_output_tokens=16),
        line("agent", model="agent/receiver", input="go"),
        line("odd", model=MODEL, input="hi", background=True),
    ]
    done = ended(client, start(client, lines, endpoint="/v1/responses"))
    assert done.status == "completed"
    by_model, by_agent = results(client, done.output_file_id)
    assert by_model["response"]["body"]["object"] == "response" and by_model["response"]["body"]["output"]
    stored = client.responses.retrieve(by_agent["response"]["body"]["id"])
    assert stored.output_text == "received" and stored.status == "completed"
    (odd,) = results(client, done.error_file_id)
    assert odd["response"]["status_code"] == 400 and "background" in odd["response"]["body"]["error"]["message"]


def test_other_endpoints_answer_too(client: OpenAI) -> None:
    def line(url: str, **body: Any) -> dict[str, Any]:
        return {"custom_id": url, "method": "POST", "url": url, "body": body}

    embedded = start(
        client,
        [line("/v1/embeddings", model="wordllama-256", input=["one text"] * 20)],
        endpoint="/v1/embeddings",
    )
    completed = start(
        client,
        [line("/v1/completions", model=MODEL, prompt="Once", max_tokens=3)],
        endpoint="/v1/completions",
    )
    (vectors,) = results(client, ended(client, embedded).output_file_id)
    assert len(vectors["response"]["body"]["data"]) == 20
    assert len(vectors["response"]["body"]["data"][0]["embedding"]) == 256
    (text,) = results(client, ended(client, completed).output_file_id)
    assert text["response"]["body"]["object"] == "text_completion"


def test_a_cancelled_batch_keeps_the_answers_that_it_got(client: OpenAI) -> None:
    batch = start(client, [chat("quick"), *(chat(f"slow {n}", max_tokens=900) for n in range(60))])
    while not (batch.request_counts and batch.request_counts.completed):
        assert batch.status in ("validating", "in_progress")
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(client, batch)
    assert done.status == "cancelled" and done.cancelling_at and done.cancelled_at
    kept = results(client, done.output_file_id)
    assert done.request_counts is not None and len(kept) == done.request_counts.completed < 61
    assert kept[0]["custom_id"] == "quick"
    assert client.batches.retrieve(batch.id).output_file_id == done.output_file_id
    assert client.batches.cancel(batch.id).status == "cancelled"
    finished = ended(client, start(client, [chat("a")]))
    with pytest.raises(openai.ConflictError, match="completed"):
        client.batches.cancel(finished.id)


def test_a_batch_that_is_stopped_stays_so_and_keeps_its_answers(service: Service, client: OpenAI) -> None:
    body = {"model": "wordllama-256", "input": "text"}
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/embeddings", "body": body} for n in range(4000)]
    batch = start(client, lines, endpoint="/v1/embeddings")
    while not (batch.request_counts and batch.request_counts.completed > 20):
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    client.batches.cancel(batch.id)
    done = ended(client, batch)
    assert done.status == "cancelled"
    time.sleep(5)  # longer than a crashed run is left alone
    # Of its end Prefect may be told by two, the server and the worker: the time is the later one's.
    later = client.batches.retrieve(batch.id)
    assert later.model_dump(exclude={"cancelled_at"}) == done.model_dump(exclude={"cancelled_at"})
    assert asyncio.run(states(service, batch))[-1] == "Cancelled"
    assert done.request_counts is not None
    assert len(results(client, done.output_file_id)) == done.request_counts.completed < 4000
    # Started again without its file, it fails, and keeps them still.
    client.files.delete(batch.input_file_id)
    service.run("resume", str(UUID(batch.id.removeprefix("batch_"))), check=False)
    while (failed := client.batches.retrieve(batch.id)).status != "failed":
        time.sleep(0.2)
    assert failed.errors is not None and batch.input_file_id in str(failed.errors.data)
    kept = results(client, failed.output_file_id)
    assert all(line in kept for line in results(client, done.output_file_id))
    assert len([file for file in client.files.list(purpose="batch_output") if batch.id in file.filename]) == 2


def test_lines_without_an_answer_in_the_window_expire(client: OpenAI) -> None:
    lines = [chat("quick"), *(chat(f"slow {n}", max_tokens=900) for n in range(60))]
    done = ended(client, start(client, lines, completion_window="8s"))
    assert done.status == "expired" and done.expired_at
    counts = done.request_counts
    assert counts is not None and counts.total == 61 and counts.completed + counts.failed == 61
    expired = results(client, done.error_file_id)
    assert len(expired) == counts.failed > 0
    assert {line["error"]["code"] for line in expired} == {"batch_expired"}
    assert all(line["response"] is None for line in expired)


def test_lists_are_paged(client: OpenAI) -> None:
    made = [start(client, [{**chat("a"), "url": "/"}]).id for _ in range(3)]
    first = client.batches.list(limit=2)
    assert [batch.id for batch in first.data] == made[:0:-1] and first.has_more
    everything = []
    for batch in client.batches.list(limit=2):
        everything.append(batch.id)
        if batch.id == made[0]:
            break
    assert everything == made[::-1]


def test_kills_of_the_batchs_process_and_of_the_server_repeat_no_finished_line(
    service: Service, client: OpenAI
) -> None:
    batch = start(client, [chat(f"line {n}", max_tokens=400) for n in range(20)])
    while not (batch.request_counts and batch.request_counts.completed > 2):
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    first = asyncio.run(record(service, batch))
    assert first.holder is not None
    identity.send(first.holder, signal.SIGKILL)
    while (second := asyncio.run(record(service, batch))).attempt == first.attempt:
        time.sleep(0.1)
    killed = http_server(service)
    assert killed is not None
    os.kill(killed.pid, signal.SIGKILL)
    cut = asyncio.run(record(service, batch))
    assert 2 < len(first.answers) <= len(second.answers) <= len(cut.answers) < 20
    while http_server(service) in (None, killed):
        time.sleep(0.1)
    done = ended(client.with_options(max_retries=40), batch, 150)
    assert done.id == batch.id and done.status == "completed"
    last = asyncio.run(record(service, batch))
    assert last.attempt == second.attempt  # the server's end cost the batch no process
    assert first.answers.items() <= cut.answers.items() <= last.answers.items()
    lines = results(client, done.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"line {n}" for n in range(20)]
    assert {line["response"]["body"]["id"] for line in lines} == set(last.answers.values())
    assert asyncio.run(progress(service, batch)) == (100.0, "20 of 20 lines, 0 failed")


def http_server(service: Service) -> psutil.Process | None:
    state = load_state(Settings(home=service.home))
    assert state is not None
    for child in psutil.Process(state.pid).children():
        with suppress(psutil.Error):
            if "timestep.server" in child.cmdline():
                return child
    return None


@dataclass
class Recorded:
    """The answers of a batch's finished lines by position, and its process."""

    answers: dict[str, str]
    attempt: int
    holder: str | None


async def states(service: Service, batch: Batch) -> list[str]:
    """The states that the batch's flow run came through."""
    async with runs.connect(service.prefect_api) as prefect:
        history = await prefect.read_flow_run_states(UUID(batch.id.removeprefix("batch_")))
    return [str(state.name) for state in sorted(history, key=lambda state: state.timestamp)]


async def progress(service: Service, batch: Batch) -> tuple[Any, str | None]:
    """What the Prefect UI shows of the batch."""
    async with runs.connect(service.prefect_api) as prefect:
        of_run = ArtifactFilterFlowRunId(any_=[UUID(batch.id.removeprefix("batch_"))])
        chosen = ArtifactFilter(key=ArtifactFilterKey(any_=["progress"]), flow_run_id=of_run)
        shown = await prefect.read_artifacts(artifact_filter=chosen, sort=ArtifactSort.CREATED_DESC, limit=1)
    return shown[0].data, shown[0].description


async def record(service: Service, batch: Batch) -> Recorded:
    state = load_state(Settings(home=service.home))
    assert state is not None
    database, run_id = Database(state.database), str(UUID(batch.id.removeprefix("batch_")))
    mine = (UnitRow.step_id == run_id, UnitRow.position.startswith("line/"), UnitRow.finished_at.is_not(None))
    try:
        async with database.session() as session:
            row = (await session.scalars(select(StepRow).where(StepRow.id == run_id))).one()
            units = {unit.position: unit.result or {} for unit in await session.scalars(select(UnitRow).where(*mine))}
            answers = {position: str(result["body"]["id"]) for position, result in units.items()}
            return Recorded(answers, row.attempt, row.holder)
    finally:
        await database.close()
