"""/v1/batches through OpenAI's own client, on the running service: each line once, whatever is killed."""

import json
import time
from collections.abc import Iterable
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Batch

from tests.conftest import Service

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
