"""/v1/fine_tuning/jobs through OpenAI's own client, on the running service: real training of a tiny model."""

import asyncio
import csv
import re
from typing import Any

import openai
import psutil
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from prefect.client.schemas.objects import StateType

from tests.conftest import Service
from tests.server.kills import kill_server, until
from timestep import runs
from timestep.server import ids
from timestep.server.fine_tuning.asked import CreateJob

ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture
def client(service: Service) -> OpenAI:
    return OpenAI(base_url=service.api, api_key="none", max_retries=5)


@pytest.fixture
def training_file(service: Service, client: OpenAI) -> str:
    return upload(client, service.dataset.read_bytes())


def upload(client: OpenAI, data: bytes, purpose: Any = "fine-tune") -> str:
    return client.files.create(file=("conversations.jsonl", data), purpose=purpose).id


def supervised(**hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def ended(client: OpenAI, job: FineTuningJob, seconds: float = 240) -> FineTuningJob:
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ENDED, seconds)
    return client.fine_tuning.jobs.retrieve(job.id)


def trains(job: FineTuningJob) -> bool:
    """Whether a llama-finetune process works for this job."""
    run_id = str(ids.run_id("ftjob-", job.id, "job"))
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return any("llama-finetune" in line and run_id in line for line in lines)


async def state(service: Service, job: FineTuningJob) -> StateType | None:
    async with runs.connect(service.prefect_api) as prefect:
        run = await prefect.read_flow_run(ids.run_id("ftjob-", job.id, "job"))
        return run.state.type if run.state else None


def test_a_paused_job_holds_no_process_and_goes_on_after_its_last_finished_epoch(
    service: Service, client: OpenAI, training_file: str
) -> None:
    job = client.fine_tuning.jobs.create(
        model="local/pupil",
        training_file=training_file,
        validation_file=upload(client, b"".join(service.dataset.read_bytes().splitlines(keepends=True)[:3])),
        suffix="paused-once",
        seed=7,
        method=supervised(n_epochs=3, batch_size=1, learning_rate_multiplier=30),
        metadata={"of": "the test"},
    )
    assert job.id.startswith("ftjob-") and job.status == "queued" and job.fine_tuned_model is None
    until(lambda: len(client.fine_tuning.jobs.checkpoints.list(job.id).data) > 0, 240)
    assert str(client.fine_tuning.jobs.pause(job.id).status) == "paused"
    until(lambda: not trains(job), 30)
    assert asyncio.run(state(service, job)) is StateType.PAUSED
    kept = len(client.fine_tuning.jobs.checkpoints.list(job.id).data)
    assert kept in (1, 2)
    checkpoint = client.fine_tuning.jobs.checkpoints.list(job.id).data[-1]
    assert asked(client, checkpoint.fine_tuned_model_checkpoint) == checkpoint.fine_tuned_model_checkpoint
    assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    with pytest.raises(openai.ConflictError, match="not paused"):
        client.with_options(max_retries=0).fine_tuning.jobs.resume(job.id)
    done = ended(client, job)
    assert done.status == "succeeded" and done.error is None and done.finished_at
    assert done.fine_tuned_model == "local/paused-once@1"
    assert (done.seed, done.metadata, done.training_file) == (7, {"of": "the test"}, training_file)
    assert done.hyperparameters.n_epochs == 3 and done.hyperparameters.learning_rate_multiplier == 30
    said_what_it_did(client, done)
    answered(client, done)
    with pytest.raises(openai.NotFoundError, match=checkpoint.id):  # it is no more, and listed no more
        asked(client, checkpoint.fine_tuned_model_checkpoint)
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"of": "the test"})] == [job.id]
    for change in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.cancel):
        with pytest.raises(openai.ConflictError, match="has succeeded"):
            change(job.id)


def said_what_it_did(client: OpenAI, job: FineTuningJob) -> None:
    """Each epoch finished once; the events and the checkpoints agree on that, a page at a time as well."""
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    told = [event.message for event in reversed(events)]
    assert told[0] == f"Created fine-tuning job: {job.id}" and told[1] == "Fine-tuning job started"
    assert told[-1] == "The job has successfully completed: local/paused-once@1 promoted"
    assert [line.split(":")[0] for line in told if line.startswith("Epoch")] == [
        f"Epoch {number} finished" for number in (1, 2, 3)
    ]
    assert told.index("The job was paused.") < told.index("Fine-tuning job goes on after its last finished epoch")
    assert len({event.id for event in events}) == len(events)
    metrics: list[Any] = [event.data for event in events if event.type == "metrics"]
    assert {"step", "total_steps", "train_loss"} <= set(metrics[0]) and metrics[0]["step"] == metrics[0]["total_steps"]
    (last,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert last.step_number == metrics[0]["total_steps"]
    assert last.fine_tuned_model_checkpoint == job.fine_tuned_model
    assert last.metrics.train_loss and last.metrics.full_valid_loss


def asked(client: OpenAI, model: str) -> str:
    """Which model answers to this name."""
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=2).model


def answered(client: OpenAI, job: FineTuningJob) -> None:
    """The result answers by its name, that of its line as well; its metrics are a file."""
    assert job.fine_tuned_model is not None
    for name in (job.fine_tuned_model, job.fine_tuned_model.partition("@")[0]):
        assert asked(client, name) == job.fine_tuned_model
    (file_id,) = job.result_files
    rows = list(csv.DictReader(client.files.content(file_id).text.splitlines()))
    assert rows and {"step", "train_loss"} <= set(rows[0])


def test_kills_of_the_server_leave_the_job_and_its_objects_as_they_are(
    service: Service, client: OpenAI, training_file: str
) -> None:
    client = client.with_options(max_retries=40)
    job = client.fine_tuning.jobs.create(
        model="local/pupil", training_file=training_file, suffix="unhurt", seed=7, method=supervised(n_epochs=3)
    )
    until(lambda: len(client.fine_tuning.jobs.checkpoints.list(job.id).data) > 0, 240)
    before = objects(client, job)
    kill_server(service)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    kept = objects(client, job)
    for name in ("events", "checkpoints"):
        assert before[name].items() <= kept[name].items()
    done = ended(client, job)
    assert done.status == "succeeded" and done.fine_tuned_model == "local/unhurt@1"
    for name in ("id", "created_at", "model", "training_file", "seed", "hyperparameters", "method"):
        assert getattr(done, name) == getattr(job, name)
    after = objects(client, job)
    assert before["events"].items() <= after["events"].items()
    told = [event.message.split(":")[0] for event in after["events"].values()]
    assert [line for line in told if line.startswith("Epoch")] == [f"Epoch {n} finished" for n in (3, 2, 1)]
    assert told.count("Fine-tuning job started") == 1 and not any("goes on after" in line for line in told)
    kill_server(service)
    assert objects(client, job) == after
    answered(client, done)


def objects(client: OpenAI, job: FineTuningJob) -> dict[str, dict[str, Any]]:
    """All that the API has of the job, by its names."""
    jobs = client.fine_tuning.jobs
    now = jobs.retrieve(job.id)
    return {
        "jobs": {now.id: now},
        "events": {event.id: event for event in jobs.list_events(job.id, limit=100)},
        "checkpoints": {checkpoint.id: checkpoint for checkpoint in jobs.checkpoints.list(job.id)},
        "files": {name: client.files.content(name).read() for name in now.result_files},
    }


def test_a_cancelled_job_leaves_no_version(client: OpenAI, training_file: str) -> None:
    before = [model.id for model in client.models.list()]
    job = client.fine_tuning.jobs.create(
        model="local/classmate", training_file=training_file, method=supervised(n_epochs=90)
    )
    until(lambda: trains(job), 120)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    until(lambda: not trains(job), 30)
    done = ended(client, job)
    assert done.fine_tuned_model is None and client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    until(lambda: client.fine_tuning.jobs.list_events(job.id).data[0].message == "The job was cancelled.", 30)
    assert [model.id for model in client.models.list()] == before


@pytest.mark.parametrize("model", ["local/pupil", "local/smollm2-135m-instruct"])
def test_a_file_that_can_not_be_trained_on_fails_the_job_and_is_named(client: OpenAI, model: str) -> None:
    bad = upload(client, b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}\n')
    done = ended(client, client.fine_tuning.jobs.create(model=model, training_file=bad))
    assert done.status == "failed" and done.error is not None
    assert done.error.param == "training_file" and "line 1" in done.error.message
    assert client.fine_tuning.jobs.list_events(done.id).data[0].level == "error"


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("local/pupil", "pupil"),
        ("local/pupil@2", "pupil"),
        ("pupil@2", "pupil-[0-9a-f]{6}"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct-[0-9a-f]{6}"),
        ("local/smollm2-135m-instruct", "smollm2-135m-instruct-[0-9a-f]{6}"),
    ],
)
def test_the_result_belongs_to_the_models_line_or_to_one_of_its_own(model: str, line: str) -> None:
    asked = CreateJob(model=model, training_file="file-1").parameters({"pupil"})
    assert re.fullmatch(line, asked["agent"]) and asked["model"] == model
    assert asked["training"]["own_line"] is (asked["agent"] != "pupil")


@pytest.mark.parametrize("suffix", ["planner", "smollm2-135m-instruct", "wordllama-256", "scripted"])
def test_a_suffix_that_names_something_else_is_refused(client: OpenAI, training_file: str, suffix: str) -> None:
    with pytest.raises(openai.BadRequestError, match=f"'{suffix}'") as refused:
        client.fine_tuning.jobs.create(model="local/pupil", training_file=training_file, suffix=suffix)
    assert refused.value.param == "suffix"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"method": supervised(batch_size=4)}, "method.supervised.hyperparameters.batch_size"),
        ({"hyperparameters": {"batch_size": 4}}, "hyperparameters.batch_size"),
        (
            {"hyperparameters": {"n_epochs": -1}},
            "'hyperparameters.n_epochs': .*'auto', or: .*greater than or equal to 1",
        ),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"suffix": "../up"}, "suffix"),
        ({"extra_body": {"priority": 1}}, "priority"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    client: OpenAI, training_file: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.fine_tuning.jobs.create(model="local/pupil", training_file=training_file, **changes)


def test_what_is_not_there_is_404(client: OpenAI, training_file: str) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'local/pupil'"):
        client.fine_tuning.jobs.create(model="local/pupl", training_file=training_file)
    with pytest.raises(openai.NotFoundError, match="file-nowhere"):
        client.fine_tuning.jobs.create(model="local/pupil", training_file="file-nowhere")
    with pytest.raises(openai.NotFoundError, match="ftjob-none"):
        client.fine_tuning.jobs.retrieve("ftjob-none")
