"""/v1/uploads, asked by OpenAI's own client: with a server killed in the middle, and how much memory a file takes."""

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from storage.spool import LOCKED_AFTER, TEMPORARY
from storage.store import ObjectStore
from tests.models.conftest import wait_for
from tests.server.stage import Stage, staged
from timestep.database.engine import Database
from timestep.database.models import UploadPartRow, UploadRow
from timestep.files.uploads import Uploads

DATA = bytes(range(256)) * 8192  # 2 MiB
PART = b'--b\r\nContent-Disposition: form-data; name="data"; filename="a"\r\n\r\n'
HEAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)


@pytest.fixture(scope="module")
def stage(postgres_url: str) -> Iterator[Stage]:
    """A server on a database and a storage of its own; no Prefect."""
    with staged(postgres_url) as stage:
        asyncio.run(Database(postgres_url).migrate())
        stage.start("http")
        yield stage


@pytest.fixture
def client(stage: Stage) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key="none", max_retries=0)


def create(client: OpenAI, size: int = len(DATA), **more: Any) -> str:
    asked = {"bytes": size, "filename": "data.bin", "mime_type": "application/octet-stream", "purpose": "user_data"}
    return client.uploads.create(**asked | more).id  # type: ignore[arg-type]


def add(client: OpenAI, upload: str, *parts: bytes) -> list[str]:
    return [client.uploads.parts.create(upload, data=part).id for part in parts]


def unfinished(stage: Stage) -> list[Path]:
    return list((stage.home / "storage" / TEMPORARY).glob("*"))


def objects(stage: Stage, of: str) -> list[Path]:
    return [path for path in (stage.home / "storage" / of).rglob("*") if path.is_file()]


def restart(stage: Stage) -> None:
    stage.end("http")
    stage.start("http")


def test_the_client_uploads_a_file_in_parts(client: OpenAI, stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(DATA)
    done = client.uploads.upload_file_chunked(
        file=tmp_path / "data.bin",
        mime_type="application/octet-stream",
        purpose="user_data",
        part_size=600_000,
        md5=hashlib.md5(DATA).hexdigest(),
    )
    assert (done.object, done.status, done.bytes, done.filename) == ("upload", "completed", len(DATA), "data.bin")
    assert done.file is not None
    assert (done.file.bytes, done.file.filename, done.file.purpose) == (len(DATA), "data.bin", "user_data")
    assert client.files.content(done.file.id).read() == DATA
    assert client.files.retrieve(done.file.id) == done.file
    assert objects(stage, "uploads") == []


def test_an_upload_says_what_was_asked(client: OpenAI) -> None:
    asked: dict[str, Any] = {"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 3600}}
    made = client.uploads.create(bytes=84, filename="a.jsonl", mime_type="application/jsonl", **asked)
    assert (made.status, made.purpose, made.file, made.object) == ("pending", "batch", None, "upload")
    assert made.expires_at - made.created_at in (3599, 3600, 3601)
    part = client.uploads.parts.create(
        made.id, data=b'{"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"in": "put"}}\n'
    )
    assert (part.object, part.upload_id) == ("upload.part", made.id)
    file = client.uploads.complete(made.id, part_ids=[part.id]).file
    assert file is not None
    assert (file.expires_at or 0) - file.created_at in (3599, 3600, 3601)


def test_what_does_not_fit_is_refused_and_can_be_mended(client: OpenAI, stage: Stage) -> None:
    upload, other = create(client), create(client, 0)
    first, second, again = add(client, upload, DATA[:1_000_000], DATA[1_000_000:], DATA[:1_000_000])
    asked: list[tuple[list[str], str | None, str]] = [
        ([first], None, "are of 1000000 bytes together, but 2097152 were declared"),
        ([first, second, again], None, "3097152 bytes"),
        ([first, first, second], None, "has a part twice"),
        ([first, "part_nobody"], None, "'part_nobody', which is no part"),
        ([second, first], hashlib.md5(DATA).hexdigest(), "that of the parts is"),
    ]
    for parts, md5, why in asked:
        with pytest.raises(openai.BadRequestError, match=why):
            client.uploads.complete(upload, part_ids=parts, **({"md5": md5} if md5 else {}))
    with pytest.raises(openai.BadRequestError, match="has more than the 0 bytes of the whole upload"):
        add(client, other, b"x")
    empty = client.uploads.complete(other, part_ids=[]).file
    assert empty is not None
    assert client.files.content(empty.id).read() == b""
    file = client.uploads.complete(upload, part_ids=[first, second], md5=hashlib.md5(DATA).hexdigest()).file
    assert file is not None
    assert client.files.content(file.id).read() == DATA
    assert (objects(stage, "uploads"), unfinished(stage)) == ([], [])


def test_parts_that_no_upload_can_need_are_not_kept(client: OpenAI, stage: Stage) -> None:
    upload = create(client, len(DATA))

    said = post(stage, f"uploads/{upload}/parts", iter([PART, DATA, b"x"]))  # which has no end: it is refused before
    assert (said.status_code, said.json()["error"]["param"]) == (400, "data")
    first, second = DATA[: len(DATA) // 2], DATA[len(DATA) // 2 :][::-1]
    add(client, upload, first, b"x", first)  # the answer to the first may have been lost
    with pytest.raises(openai.BadRequestError, match="would make 2097153 bytes of parts, 2097152 were declared"):
        add(client, upload, second)
    other = create(client, len(DATA))
    parts = add(client, other, first, first, second, second)
    with pytest.raises(openai.BadRequestError, match="would make 5242880 bytes of parts, 2097152 were declared"):
        add(client, other, second)
    assert client.uploads.cancel(upload).status == "cancelled"
    assert client.uploads.complete(other, part_ids=parts[1:3]).status == "completed"
    assert (objects(stage, "uploads"), unfinished(stage)) == ([], [])


async def test_of_two_that_complete_at_once_both_get_the_file(client: OpenAI, stage: Stage) -> None:
    upload = create(client)
    parts = add(client, upload, DATA)
    shelves = Database(stage.database_url), ObjectStore.open(f"local://{stage.home / 'storage'}")

    class Slow(Uploads):
        """Another one completes the upload once this one has read what it must be made of."""

        async def _parts(self, upload: UploadRow, part_ids: Sequence[str]) -> list[UploadPartRow]:
            found = await super()._parts(upload, part_ids)
            await Uploads(*shelves).complete(upload.id, part_ids)
            return found

    done = await Slow(*shelves).complete(upload, parts)
    await shelves[0].close()
    again = client.uploads.complete(upload, part_ids=parts).file
    assert again is not None
    assert (done.status, done.file_id) == ("completed", again.id)


def test_a_cancelled_upload_takes_no_parts(client: OpenAI, stage: Stage) -> None:
    upload = create(client)
    parts = add(client, upload, DATA)
    assert client.uploads.cancel(upload).status == client.uploads.cancel(upload).status == "cancelled"
    assert objects(stage, "uploads") == []
    for ask in (lambda: add(client, upload, b"x"), lambda: client.uploads.complete(upload, part_ids=parts)):
        with pytest.raises(openai.BadRequestError, match="is cancelled"):
            ask()
    with pytest.raises(openai.NotFoundError, match="No upload 'upload_nobody'"):
        client.uploads.cancel("upload_nobody")


@pytest.mark.parametrize(("more", "param"), [
    ({"bytes": -1}, "bytes"),
    ({"bytes": 2**63}, "bytes"),
    ({"bytes": "1"}, "bytes"),
    ({"purpose": "nonsense"}, "purpose"),
    ({"extra_body": {"colour": "red"}}, "colour"),
    ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
])  # fmt: skip
def test_what_is_wrong_is_named(client: OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, **more)
    assert refused.value.param == param


def test_a_kill_leaves_acknowledged_parts_and_no_half_files(client: OpenAI, stage: Stage) -> None:
    upload = create(client, 3 * len(DATA))
    parts = add(client, upload, DATA)
    before = [file.id for file in client.files.list()]
    killed = threading.Event()

    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(post, stage, f"uploads/{upload}/parts", cut(PART + DATA, killed)),
            pool.submit(post, stage, "files", cut(HEAD + DATA, killed)),
        ]
        wait_for(lambda: len(unfinished(stage)) == 2, 30)
        swept(stage)
        assert len(unfinished(stage)) == 2  # their process lives
        restart(stage)
        killed.set()
        assert all(isinstance(one.exception(), httpx.HTTPError) for one in asked)

    assert [file.id for file in client.files.list()] == before
    assert len(unfinished(stage)) == 2
    swept(stage)
    assert unfinished(stage) == []
    parts += add(client, upload, DATA[::-1], DATA)
    file = client.uploads.complete(upload, part_ids=parts).file
    assert file is not None
    assert client.files.content(file.id).read() == DATA + DATA[::-1] + DATA
    assert client.uploads.complete(upload, part_ids=parts).file == file


def test_a_file_takes_little_memory(client: OpenAI, stage: Stage) -> None:
    size, before = 96 << 20, memory(stage, "VmRSS")
    response = post(stage, "files", big(size))
    file_id = response.json()["id"]
    digest = hashlib.sha256()
    with client.files.with_streaming_response.content(file_id) as content:
        for chunk in content.iter_bytes():
            digest.update(chunk)
    assert content.headers["etag"] == f'"{digest.hexdigest()}"'
    assert memory(stage, "VmHWM") - before < 32e6


@pytest.mark.long
def test_a_file_of_1_gb_in_parts_survives_a_kill_and_takes_little_memory(client: OpenAI, stage: Stage) -> None:
    part = DATA * 32
    upload = create(client, 16 * len(part))
    parts = add(client, upload, *[part] * 8)
    killed = threading.Event()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(post, stage, f"uploads/{upload}/parts", cut(PART + part[: len(part) // 2], killed))
        wait_for(lambda: any(path.stat().st_size > len(part) // 4 for path in unfinished(stage)), 30)
        restart(stage)
        killed.set()
        assert isinstance(asked.exception(), httpx.HTTPError)
    before = memory(stage, "VmRSS")
    parts += add(client, upload, *[part] * 8)
    md5 = hashlib.md5(part * 16).hexdigest()
    file = client.uploads.complete(upload, part_ids=parts, md5=md5).file
    assert file is not None
    assert file.bytes == 1 << 30
    assert memory(stage, "VmHWM") - before < 64e6
    swept(stage)
    assert (objects(stage, "uploads"), unfinished(stage)) == ([], [])


def cut(content: bytes, killed: threading.Event) -> Iterator[bytes]:
    """A body that goes no further until the server is killed."""
    yield content
    killed.wait(60)


def post(stage: Stage, where: str, content: Iterator[bytes]) -> httpx.Response:
    url, headers = f"http://127.0.0.1:{stage.port}/v1/{where}", {"content-type": "multipart/form-data; boundary=b"}
    return httpx.post(url, content=content, headers=headers, timeout=120)


def big(size: int) -> Iterator[bytes]:
    yield HEAD
    for _ in range(size // len(DATA)):
        yield DATA
    yield b"\r\n--b--\r\n"


def memory(stage: Stage, name: str) -> int:
    """Of the server, in bytes; VmHWM is the most it ever was."""
    status = Path(f"/proc/{stage.processes['http'].pid}/status").read_text()
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


def swept(stage: Stage) -> None:
    """What the server does once a minute, with all that is unfinished old enough for it."""
    past = time.time() - LOCKED_AFTER - 1
    for path in unfinished(stage):
        os.utime(path, (past, past))
    asyncio.run(ObjectStore.open(f"local://{stage.home / 'storage'}").sweep())
