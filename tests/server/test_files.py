"""/v1/files, asked by OpenAI's own client: what is stored is whole, and what is refused is named."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from sqlalchemy import func, select, update

from storage.store import ObjectStore
from tests.models.conftest import wait_for
from tests.server.stage import Stage, staged
from timestep.database.engine import Database
from timestep.database.models import FileRow
from timestep.files import Files
from timestep.server.records import Housekeeper
from timestep.settings import Settings

LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'


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


@pytest.fixture
def files_url(stage: Stage) -> str:
    return f"http://127.0.0.1:{stage.port}/v1/files"


def stored(stage: Stage) -> list[Path]:
    return [path for path in (stage.home / "storage").rglob("*") if path.is_file()]


def test_a_file_comes_back_as_it_went(client: OpenAI, tmp_path: Path, stage: Stage) -> None:
    (tmp_path / "Bericht \N{SNOWMAN}.bin").write_bytes(bytes(range(256)) * 12_000)
    made = client.files.create(file=tmp_path / "Bericht \N{SNOWMAN}.bin", purpose="user_data")
    assert (made.object, made.bytes, made.filename) == ("file", 3_072_000, "Bericht \N{SNOWMAN}.bin")
    assert (made.purpose, made.status, made.expires_at) == ("user_data", "processed", None)
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == bytes(range(256)) * 12_000
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "file")
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No file '{made.id}'"):
            ask(made.id)
    assert stored(stage) == []


def test_fields_may_come_behind_the_file(files_url: str) -> None:
    form = [("file", ("a.txt", b"text")), ("purpose", (None, "user_data"))]
    made = httpx.post(files_url, files=form).json()  # type: ignore[arg-type]
    assert (made["bytes"], made["purpose"]) == (4, "user_data")


def test_a_file_expires_as_asked(client: OpenAI) -> None:
    soon = client.files.create(file=b"text", purpose="evals", expires_after={"anchor": "created_at", "seconds": 3600})
    batch = client.files.create(file=LINE, purpose="batch")
    assert (soon.expires_at or 0) - soon.created_at in (3600, 3599, 3601)
    assert (batch.expires_at or 0) - batch.created_at in (2592000, 2591999, 2592001)


def test_a_list_is_paged_by_the_client(client: OpenAI) -> None:
    made = [client.files.create(file=b"", purpose="vision").id for _ in range(5)]
    assert [file.id for file in client.files.list(purpose="vision", limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(purpose="vision", limit=2, order="asc")] == made
    first = client.files.list(purpose="vision", limit=2, order="asc")
    assert (first.has_more, [file.id for file in first.data]) == (True, made[:2])
    with pytest.raises(openai.NotFoundError, match="No file 'file-nobody'"):
        client.files.list(after="file-nobody")


RANGES: list[tuple[str, int, bytes, str | None]] = [
    ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
    ("bytes=7-", 206, b"789", "bytes 7-9/10"),
    ("bytes=-2", 206, b"89", "bytes 8-9/10"),
    ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
    ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
    ("bytes=10-", 416, b"", "bytes */10"),
    ("bytes=-0", 416, b"", "bytes */10"),
    ("bytes=5-3", 200, b"0123456789", None),
    ("bytes=0-1,4-5", 200, b"0123456789", None),
    ("lines=0-3", 200, b"0123456789", None),
]


@pytest.fixture(scope="module")
def ten(stage: Stage) -> str:
    client = OpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key="none")
    return client.files.create(file=b"0123456789", purpose="user_data").id


@pytest.mark.parametrize(("asked", "status", "body", "told"), RANGES)
def test_a_range_is_given(files_url: str, ten: str, asked: str, status: int, body: bytes, told: str | None) -> None:
    response = httpx.get(f"{files_url}/{ten}/content", headers={"range": asked})
    assert (response.status_code, response.headers.get("content-range")) == (status, told)
    if status == 416:
        assert "has 10 bytes" in response.json()["error"]["message"]
    else:
        assert (response.content, int(response.headers["content-length"])) == (body, len(body))


def test_a_range_of_other_bytes_is_not_given(files_url: str, ten: str) -> None:
    tag = httpx.get(f"{files_url}/{ten}/content").headers["etag"]
    asked = {"range": "bytes=0-3", "if-range": tag}
    assert httpx.get(f"{files_url}/{ten}/content", headers=asked).status_code == 206
    asked["if-range"] = '"of another"'
    assert httpx.get(f"{files_url}/{ten}/content", headers=asked).content == b"0123456789"


def test_a_name_is_a_label_and_no_path(client: OpenAI, files_url: str, stage: Stage) -> None:
    made = client.files.create(file=("../../../etc/pass\nwd", b"text"), purpose="user_data")
    content = httpx.get(f"{files_url}/{made.id}/content")
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''pass%250Awd"
    assert made.filename == "../../../etc/pass%0Awd"  # as the client spells a line break
    assert {path.name for path in stored(stage)} == {"content"}
    for id in ("../files", "file-%00", "..%2f..%2fetc", "file-" + "x" * 3000):
        assert httpx.get(f"{files_url}/{id}/content").status_code == 404


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"purpose": "nonsense"}, "purpose", "assistants"),
    ({}, "purpose", "Field required"),
    ({"purpose": "user_data", "expires_after[seconds]": "9"}, "expires_after.anchor", "required"),
    ({"purpose": "user_data", "expires_after[anchor]": "x", "expires_after[seconds]": "3600"},
     "expires_after.anchor", "created_at"),
    ({"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "9"},
     "expires_after.seconds", "3600"),
    ({"purpose": "user_data", "colour": "red"}, "colour", "not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "why"), REFUSED)
def test_what_is_wrong_is_named(files_url: str, fields: dict[str, str], param: str, why: str, stage: Stage) -> None:
    before = stored(stage)
    response = httpx.post(files_url, files={"file": ("a.txt", b"text")}, data=fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert f"'{param}'" in error["message"]
    assert why in error["message"]
    assert stored(stage) == before


@pytest.mark.parametrize(("query", "param"), [("limit=0", "limit"), ("purpose=x", "purpose"), ("colour=red", "colour")])
def test_what_is_wrong_in_a_query_is_named(files_url: str, query: str, param: str) -> None:
    response = httpx.get(f"{files_url}?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"json": {"purpose": "user_data"}}, "is no form"),
    ({"files": {"purpose": (None, "user_data")}}, "'file' is missing"),
    ({"files": [("file", ("a", b"a")), ("file", ("b", b"b"))]}, "'file' is given twice"),
    ({"files": [("file", ("a", b"a")), ("other", ("b", b"b"))]}, "'other' is a file"),
    ({"files": [("file", ("a", b"a"))], "data": {"purpose": "x" * 70_000}}, "longer than 65536 bytes"),
    ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "is no form"),
    ({"content": b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nhalf',
      "headers": {"content-type": "multipart/form-data; boundary=b"}}, "is cut"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "why"), FORMS)
def test_a_body_that_is_no_form_is_refused(files_url: str, request_: dict[str, Any], why: str) -> None:
    response = httpx.post(files_url, **request_)
    assert response.status_code == 400
    assert why in response.json()["error"]["message"]


@pytest.mark.parametrize("purpose", ["batch", "fine-tune"])
@pytest.mark.parametrize(("data", "why"), [(b"", "it is empty"), (b"\n\nno json\n", "first line"), (b"[1]\n", "first"),
                                         (b"[" * 200_000, "first")])  # fmt: skip
def test_what_is_no_json_lines_is_refused(client: OpenAI, purpose: Any, data: bytes, why: str) -> None:
    with pytest.raises(openai.BadRequestError, match=why):
        client.files.create(file=("lines.jsonl", data), purpose=purpose)
    client.files.create(file=("lines.jsonl", b"\xef\xbb\xbf" + LINE), purpose=purpose)


def test_a_client_that_leaves_leaves_nothing(files_url: str, stage: Stage) -> None:
    before = stored(stage)

    def breaks() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 5_000_000
        wait_for(lambda: stored(stage) != before, 30)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        httpx.post(files_url, content=breaks(), headers={"content-type": "multipart/form-data; boundary=b"})
    wait_for(lambda: stored(stage) == before, 30)


async def test_a_file_whose_id_the_caller_chose_is_there_once(client: OpenAI, stage: Stage) -> None:
    class Cut(ObjectStore):
        async def put(self, *_: Any, **__: Any) -> Any:
            raise asyncio.CancelledError

    database, url = Database(stage.database_url), f"local://{stage.home / 'storage'}"
    asked: dict[str, Any] = {"filename": "a.csv", "purpose": "fine-tune-results", "file_id": f"file-{7:032x}"}
    with pytest.raises(asyncio.CancelledError):
        await Files(database, Cut.open(url)).create(b"text", **asked)
    files = Files(database, ObjectStore.open(url))
    made = await files.create(b"text", **asked)
    assert (await files.create(b"again", **asked)).sha256 == made.sha256
    await database.close()
    assert [file.id for file in client.files.list(purpose="fine-tune-results")] == [made.id] == [asked["file_id"]]
    assert client.files.content(made.id).text == "text"


async def test_a_server_that_keeps_house_sweeps_expired_files(client: OpenAI, stage: Stage) -> None:
    kept, old = (client.files.create(file=b"text", purpose="assistants").id for _ in range(2))
    settings = Settings(home=stage.home, database_url=stage.database_url, prefect_api_url="http://127.0.0.1:9/api")
    housekeeper = Housekeeper(settings)
    try:
        database = await housekeeper.database()
        async with database.session() as session:
            await session.execute(update(FileRow).where(FileRow.id == old).values(expires_at=func.now()))
        await housekeeper._sweep_files()
        async with database.session() as session:
            assert list(await session.scalars(select(FileRow.id).where(FileRow.purpose == "assistants"))) == [kept]
        assert not any(old in path.parts for path in stored(stage))
    finally:
        await housekeeper.close()
