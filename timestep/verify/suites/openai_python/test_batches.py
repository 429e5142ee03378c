"""/v1/batches."""

import json
from typing import Any

import pytest
from conftest import until
from openai import NotFoundError, OpenAI

ENDS = {"completed", "failed", "expired", "cancelled"}


def _begin(client: OpenAI, endpoint: str, bodies: list[Any], **more: Any) -> Any:
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": endpoint, "body": body}
        for number, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def _results(client: OpenAI, file: str) -> dict[str, Any]:
    lines = client.files.content(file).text.splitlines()
    return {line["custom_id"]: line for line in map(json.loads, lines)}


def _chat(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}


def test_chat(client: OpenAI, model: str) -> None:
    bodies = [_chat(model, f"Hello {number}") for number in range(3)]
    batch = _begin(client, "/v1/chat/completions", bodies, metadata={"kind": "test"})
    assert batch.object == "batch" and batch.metadata == {"kind": "test"}
    done = until(lambda: client.batches.retrieve(batch.id), ENDS)
    assert done.status == "completed" and (done.request_counts.completed, done.request_counts.failed) == (3, 0)
    results = _results(client, done.output_file_id)
    assert set(results) == {"line-0", "line-1", "line-2"}
    assert results["line-1"]["response"]["body"]["choices"][0]["message"]["content"]


@pytest.mark.parametrize("endpoint", ["/v1/responses", "/v1/completions", "/v1/embeddings"])
def test_endpoints(client: OpenAI, model: str, embedding_model: str, endpoint: str) -> None:
    bodies: dict[str, Any] = {
        "/v1/responses": {"model": model, "input": "Hello", "max_output_tokens": 16},
        "/v1/completions": {"model": model, "prompt": "Hello", "max_tokens": 8},
        "/v1/embeddings": {"model": embedding_model, "input": "Hello"},
    }
    batch = _begin(client, endpoint, [bodies[endpoint]])
    done = until(lambda: client.batches.retrieve(batch.id), ENDS)
    assert done.status == "completed" and done.request_counts.completed == 1, done
    assert _results(client, done.output_file_id)["line-0"]["response"]["status_code"] == 200


def test_a_bad_line_fails_alone(client: OpenAI, model: str) -> None:
    batch = _begin(client, "/v1/chat/completions", [_chat(model, "Hello"), _chat("no-such-model", "Hello")])
    done = until(lambda: client.batches.retrieve(batch.id), ENDS)
    assert done.status == "completed" and (done.request_counts.completed, done.request_counts.failed) == (1, 1)
    assert "line-1" in _results(client, done.error_file_id)


def test_unreadable_lines_fail_the_batch(client: OpenAI, model: str) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": _chat(model, "Hello")}
    file = client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = until(lambda: client.batches.retrieve(batch.id), ENDS)
    assert done.status == "failed" and done.errors.data[0].line == 1


def test_cancel(client: OpenAI, model: str) -> None:
    batch = _begin(client, "/v1/chat/completions", [_chat(model, "Please take 20 seconds for this.")] * 1)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    assert until(lambda: client.batches.retrieve(batch.id), ENDS).status == "cancelled"


def test_list(client: OpenAI, model: str) -> None:
    batch = _begin(client, "/v1/chat/completions", [_chat(model, "Hello")])
    assert client.batches.list(limit=1).data[0].id == batch.id
    until(lambda: client.batches.retrieve(batch.id), ENDS)


def test_unknown_batch(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.batches.retrieve("batch_" + "0" * 32)


def test_unknown_input_file(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.batches.create(
            input_file_id="file-" + "0" * 32, endpoint="/v1/chat/completions", completion_window="24h"
        )
