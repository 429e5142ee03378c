"""/v1/uploads."""

import hashlib
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

PARTS = [b"first " * 1000, b"second " * 1000, b"third " * 1000]
WHOLE = b"".join(PARTS)


def _begin(client: OpenAI, size: int = len(WHOLE)) -> str:
    asked = {"filename": "words.txt", "purpose": "user_data", "mime_type": "text/plain", "bytes": size}
    made = client.uploads.create(**asked)
    assert made.object == "upload" and made.status == "pending" and made.expires_at > made.created_at
    return str(made.id)


def test_parts_in_any_order(client: OpenAI) -> None:
    upload = _begin(client)
    parts = [client.uploads.parts.create(upload, data=data).id for data in (PARTS[2], PARTS[0], PARTS[1])]
    order = [parts[1], parts[2], parts[0]]
    done = client.uploads.complete(upload, part_ids=order, md5=hashlib.md5(WHOLE).hexdigest())
    assert done.status == "completed" and done.file.bytes == len(WHOLE)
    assert client.files.content(done.file.id).read() == WHOLE


def test_wrong_size_is_refused(client: OpenAI) -> None:
    upload = _begin(client, size=len(PARTS[0]) + 1)
    part = client.uploads.parts.create(upload, data=PARTS[0]).id
    with pytest.raises(BadRequestError):
        client.uploads.complete(upload, part_ids=[part])


def test_wrong_checksum_is_refused(client: OpenAI) -> None:
    upload = _begin(client, size=len(PARTS[0]))
    part = client.uploads.parts.create(upload, data=PARTS[0]).id
    with pytest.raises(BadRequestError):
        client.uploads.complete(upload, part_ids=[part], md5="0" * 32)


def test_cancel(client: OpenAI) -> None:
    upload = _begin(client)
    assert client.uploads.cancel(upload).status == "cancelled"
    with pytest.raises(BadRequestError):
        client.uploads.parts.create(upload, data=b"late")


def test_chunked_helper(client: OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(WHOLE)
    asked = {"mime_type": "text/plain", "purpose": "user_data", "part_size": 4096}
    done = client.uploads.upload_file_chunked(file=file, **asked)
    assert done.status == "completed" and client.files.content(done.file.id).read() == WHOLE
