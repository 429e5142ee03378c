"""/v1/fine_tuning/jobs. What can be trained here is what the service has weights for."""

import json
from typing import Any

import pytest
from conftest import until
from openai import BadRequestError, NotFoundError, OpenAI

ENDS = {"succeeded", "failed", "cancelled"}
LINES = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}"}]} for n in range(12)
]


def _file(client: OpenAI) -> str:
    content = "\n".join(map(json.dumps, LINES)).encode()
    return str(client.files.create(file=("train.jsonl", content), purpose="fine-tune").id)


@pytest.fixture
def trainable(client: OpenAI) -> str:
    names = {one.id for one in client.models.list()}
    if "smollm2-135m-instruct" not in names:
        pytest.skip("the service lists no base model with weights")
    return "smollm2-135m-instruct"


def _begin(client: OpenAI, model: str, **more: Any) -> Any:
    asked = {"hyperparameters": {"n_epochs": 1}, "suffix": "verify", "seed": 7}
    return client.fine_tuning.jobs.create(model=model, training_file=_file(client), **{**asked, **more})


def test_create_retrieve_cancel(client: OpenAI, trainable: str) -> None:
    job = _begin(client, trainable, metadata={"kind": "test"})
    assert job.object == "fine_tuning.job" and job.id.startswith("ftjob-") and job.seed == 7
    assert client.fine_tuning.jobs.retrieve(job.id).metadata == {"kind": "test"}
    assert client.fine_tuning.jobs.list(limit=1).data[0].id == job.id
    client.fine_tuning.jobs.cancel(job.id)
    assert until(lambda: client.fine_tuning.jobs.retrieve(job.id), ENDS).status == "cancelled"
    assert client.fine_tuning.jobs.list_events(job.id).data
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []


def test_pause_and_resume(client: OpenAI, trainable: str) -> None:
    job = _begin(client, trainable)
    try:
        client.fine_tuning.jobs.pause(job.id)
        until(lambda: client.fine_tuning.jobs.retrieve(job.id), {"paused", *ENDS})
        assert client.fine_tuning.jobs.retrieve(job.id).status == "paused"
        assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running", "validating_files")
    finally:
        client.fine_tuning.jobs.cancel(job.id)
    until(lambda: client.fine_tuning.jobs.retrieve(job.id), ENDS)


def test_method_is_refused_by_name(client: OpenAI, trainable: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        _begin(client, trainable, method={"type": "dpo", "dpo": {}})
    assert "dpo" in str(raised.value)


def test_unknown_training_file(client: OpenAI, trainable: str) -> None:
    with pytest.raises((NotFoundError, BadRequestError)):
        client.fine_tuning.jobs.create(model=trainable, training_file="file-" + "0" * 32)


def test_unknown_job(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-" + "0" * 32)
