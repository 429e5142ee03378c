"""/v1/files."""

import io

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}\n'


def _put(client: OpenAI, content: bytes = b"Hello", name: str = "hello.txt", **more: object) -> str:
    asked = {"purpose": "user_data", **more}
    return str(client.files.create(file=(name, io.BytesIO(content)), **asked).id)


def test_create_and_retrieve(client: OpenAI) -> None:
    made = client.files.create(file=("hello.txt", b"Hello"), purpose="user_data")
    assert made.object == "file" and made.bytes == 5 and made.filename == "hello.txt" and made.purpose == "user_data"
    assert client.files.retrieve(made.id).id == made.id


@pytest.mark.parametrize("purpose", ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"])
def test_purposes(client: OpenAI, purpose: str) -> None:
    line = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    content = {"batch": LINE, "fine-tune": line}.get(purpose, b"Hello")
    made = client.files.create(file=("data.jsonl", content), purpose=purpose)
    assert made.purpose == purpose


def test_unknown_purpose(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as raised:
        client.files.create(file=("hello.txt", b"Hello"), purpose="no-such-purpose")
    assert raised.value.param == "purpose"


def test_content(client: OpenAI) -> None:
    content = bytes(range(256)) * 4096
    assert client.files.content(_put(client, content, "bytes.bin")).read() == content


def test_content_streamed(client: OpenAI) -> None:
    content = b"0123456789" * 100_000
    identifier = _put(client, content, "digits.txt")
    with client.files.with_streaming_response.content(identifier) as response:
        assert b"".join(response.iter_bytes()) == content


def test_list_in_pages(client: OpenAI) -> None:
    made = [_put(client) for _ in range(3)]
    listed = [one.id for one in client.files.list(limit=2, order="desc", purpose="user_data")]
    assert listed[:3] == made[::-1]


def test_expiry(client: OpenAI) -> None:
    after = {"anchor": "created_at", "seconds": 3600}
    made = client.files.create(file=("hello.txt", b"Hello"), purpose="user_data", expires_after=after)
    assert made.expires_at == made.created_at + 3600


def test_delete(client: OpenAI) -> None:
    identifier = _put(client)
    assert client.files.delete(identifier).deleted
    with pytest.raises(NotFoundError):
        client.files.retrieve(identifier)
    with pytest.raises(NotFoundError):
        client.files.content(identifier)


def test_odd_names_are_labels(client: OpenAI) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "naïve – 猫.txt"):
        identifier = _put(client, b"odd", name)
        assert client.files.content(identifier).read() == b"odd"


def test_unknown_file(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.files.retrieve("file-" + "0" * 32)
