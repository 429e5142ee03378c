"""Keys, scopes, limits and names over a real server: who may ask for what, how much, and from where."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT, environment, free_port
from tests.server.guarded import ASKED, MAX_BODY, MESSAGES, PROVIDER_KEY, SERVICE_KEY, Guarded, secrets_in, until
from timestep.database.engine import Database
from timestep.keys import Keys, Scope
from timestep.server.app import create_app
from timestep.server.security.scopes import is_open, needed
from timestep.settings import Settings


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    server = Guarded(tmp_path_factory.mktemp("models") / "log", {"MODEL": "scripted", "SERVICE_KEY": SERVICE_KEY})
    server.start("timestep.models.server")
    yield server
    server.end()


@pytest.fixture(scope="module")
def server(models: Guarded, postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    shut = f"http://127.0.0.1:{free_port()}/v1"
    settings = {
        "DATABASE_URL": postgres_url,
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "MODEL_SERVER_URL": models.url,
        "SERVICE_KEY": SERVICE_KEY,
        "MAX_BODY_BYTES": str(MAX_BODY),
        "PROVIDERS": json.dumps({"lab": {"base_url": shut, "api_key": PROVIDER_KEY}}),
        "ORIGINS": "https://chat.example",
    }
    running = Guarded(tmp_path_factory.mktemp("server") / "log", settings)
    running.start()
    yield running
    running.end()
    assert not secrets_in(running.log)


@pytest.fixture
def free(server: Guarded, database: Database) -> Guarded:
    """The server, while there is no key."""
    until(lambda: server.ask("GET", "/v1/models").status_code == 200)
    return server


def refused(response: Any, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code and set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


async def test_without_any_key_this_machine_needs_none(free: Guarded) -> None:
    client = OpenAI(base_url=f"{free.url}/v1", api_key="none")
    assert client.chat.completions.create(model="scripted", messages=MESSAGES).choices[0].message.content


async def test_from_the_first_key_on_one_is_needed(free: Guarded, database: Database) -> None:
    key = await free.key(database, Scope.INFERENCE)
    answer = free.ask("GET", "/v1/models")
    assert "timestep keys create" in refused(answer, 401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError, match="unknown, or was revoked"):
        OpenAI(base_url=f"{free.url}/v1", api_key="ts-wrong").models.list()
    client = OpenAI(base_url=f"{free.url}/v1", api_key=key)
    whole = client.chat.completions.create(model="scripted", messages=MESSAGES).choices[0].message.content
    stream = client.chat.completions.create(model="scripted", messages=MESSAGES, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == whole


async def test_a_revoked_key_ends(free: Guarded, database: Database) -> None:
    key = await free.key(database, Scope.INFERENCE)
    assert free.ask("GET", "/v1/models", key).status_code == 200
    await Keys(database).revoke(key)
    until(lambda: free.ask("GET", "/v1/models", key).status_code == 401)


async def test_what_is_no_bearer_is_no_key(free: Guarded, database: Database) -> None:
    key = await free.key(database, Scope.ADMIN)
    assert free.ask("GET", "/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200
    for header in ("Basic {}", "{}", "Bearer", "Bearer x{}", "Bearer {}, Bearer {}"):
        asked = free.ask("GET", "/v1/models", headers={"authorization": header.format(key, key)})
        assert asked.status_code == 401, header
    assert free.ask("GET", f"/v1/models?api_key={key}").status_code == 401


async def test_the_services_own_key_may_do_everything(free: Guarded, database: Database) -> None:
    await free.key(database, Scope.INFERENCE)
    for path in ("/v1/models", "/metrics", "/v1/files"):
        assert free.ask("GET", path, SERVICE_KEY).status_code == 200


REFUSED = [
    (Scope.INFERENCE, "DELETE", "/v1/models/local/x"),
    (Scope.INFERENCE, "GET", "/v1/fine_tuning/jobs"),
    (Scope.TRAINING, "POST", "/v1/chat/completions"),
    (Scope.TRAINING, "GET", "/v1/batches"),
    (Scope.TRAINING, "POST", "/v1/responses"),
    (Scope.TRAINING, "POST", "/ap/v1/agent/tasks"),
]


async def test_a_key_does_what_its_scopes_say(free: Guarded, database: Database) -> None:
    keys = {scope: await free.key(database, scope) for scope in Scope}
    for scope, method, path in REFUSED:
        message = refused(free.ask(method, path, keys[scope]), 403, "insufficient_scope")
        assert message.startswith(f"{method} {path} needs a key of scope ") and f"'{scope.value}'" in message
        assert free.ask(method, path, keys[Scope.ADMIN]).status_code not in (401, 403)
    for scope in (Scope.INFERENCE, Scope.TRAINING):
        for path in ("/v1/models", "/v1/files", "/metrics"):
            assert free.ask("GET", path, keys[scope]).status_code == 200
        assert free.ask("GET", "/v1/nowhere", keys[scope]).status_code == 404


def test_every_route_says_its_scope() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    asked = [(method.upper(), path) for path, operations in paths.items() for method in operations]
    assert len(asked) > 20
    assert not [one for one in asked if not is_open(one[1]) and not needed(*one)]


async def test_pages_and_health_need_no_key(free: Guarded, database: Database) -> None:
    await free.key(database, Scope.ADMIN)
    assert free.ask("GET", "/health").status_code == 200
    assert free.ask("GET", "/livez").status_code == 204
    for path in ("/", "/docs", "/openapi.json"):
        assert free.ask("GET", path).status_code not in (401, 403)


SPELLINGS = (
    *("//v1/models", "/health/../v1/models", "/docs/../v1/models", "/docs/%2e%2e/v1/models", "/static/..%2fv1/models"),
    *("/v1/models/", "/V1/models", "/v1%2fmodels", "/;/v1/models", "/v1/models?/health"),
)


async def test_no_spelling_of_a_path_goes_round_the_keys(free: Guarded, database: Database) -> None:
    await free.key(database, Scope.ADMIN)
    for path in SPELLINGS:
        status, body = raw(free, "GET", path)
        assert status in (401, 404) and b"scripted" not in body, path


async def test_a_key_has_so_many_requests_a_minute(free: Guarded, database: Database) -> None:
    key = await free.key(database, Scope.INFERENCE, per_minute=3)
    answers = [free.ask("GET", "/v1/models", key) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers[:3]] == ["2", "1", "0"]
    refused(answers[3], 429, "rate_limit_exceeded")
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert free.ask("GET", "/v1/models", SERVICE_KEY).status_code == 200
    assert free.ask("GET", "/health").status_code == 200


async def test_a_database_that_is_away_opens_nothing(free: Guarded, tmp_path: Path) -> None:
    away = Guarded(
        tmp_path / "log", free.settings | {"DATABASE_URL": f"postgresql://me:hid-den-pw@127.0.0.1:{free_port()}"}
    )
    away.start()
    try:
        for key in (None, "ts-any"):
            refused(away.ask("GET", "/v1/models", key), 503, "service_unavailable")
        assert away.ask("GET", "/v1/models", SERVICE_KEY).status_code == 200
        assert away.ask("GET", "/v1/files", SERVICE_KEY).status_code == 503
    finally:
        away.end()
    assert not secrets_in(away.log, "hid-den-pw")


def test_a_start_that_others_reach_is_refused_without_a_key(database: Database, postgres_url: str) -> None:
    own = {"TIMESTEP_HOST": "0.0.0.0", "TIMESTEP_PORT": str(free_port()), "TIMESTEP_DATABASE_URL": postgres_url}
    command = [sys.executable, "-m", "timestep.server"]
    done = subprocess.run(
        command, env=environment() | own, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("Make one first: timestep keys create\n")


FROM: list[tuple[dict[str, str], int]] = [
    ({"host": "localhost:{port}"}, 200),
    ({"host": "[::1]:{port}"}, 200),
    ({"host": "evil.example"}, 403),
    ({"host": "127.0.0.1.evil.example:{port}"}, 403),
    ({"host": "localhost.evil.example"}, 403),
    ({"origin": "http://127.0.0.1:{port}"}, 200),
    ({"origin": "https://chat.example"}, 200),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "http://127.0.0.1:1"}, 403),
    ({"origin": "null"}, 403),
]


async def test_while_no_key_is_needed_only_this_machines_pages_may_ask(free: Guarded) -> None:
    for headers, status in FROM:
        sent = {name: value.format(port=free.port) for name, value in headers.items()}
        body = {"model": "scripted", "messages": MESSAGES}
        answer = free.ask("POST", "/v1/chat/completions", headers=sent, json=body)
        assert answer.status_code == status, (sent, answer.text)
        if status == 403:
            refused(answer, 403, "insufficient_scope")


async def test_other_sites_pages_ask_only_where_they_are_named(free: Guarded, database: Database) -> None:
    def preflight(origin: str) -> Any:
        asks = {"origin": origin, "access-control-request-method": "POST"}
        return free.ask("OPTIONS", "/v1/chat/completions", headers=asks)

    await free.key(database, Scope.ADMIN)
    assert preflight("https://chat.example").headers["access-control-allow-origin"] == "https://chat.example"
    other = preflight("https://evil.example")
    assert other.status_code >= 400 and "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_is_too_large_is_refused(declared: bool, free: Guarded) -> None:
    asked = json.dumps({"model": "scripted", "messages": MESSAGES, "user": "x" * MAX_BODY}).encode()
    pieces = (asked[at : at + 10_000] for at in range(0, len(asked), 10_000))
    content: Any = asked if declared else pieces
    answer = free.ask("POST", "/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert f"larger than {MAX_BODY} bytes" in refused(answer, 413, "too_large")
    small = {"model": "scripted", "messages": MESSAGES}
    assert free.ask("POST", "/v1/chat/completions", json=small).status_code == 200


async def test_a_file_may_be_larger_than_other_bodies(free: Guarded) -> None:
    file = {"file": ("notes.txt", b"x" * 2 * MAX_BODY)}
    answer = free.ask("POST", "/v1/files", files=file, data={"purpose": "user_data"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == 2 * MAX_BODY


def raw(server: Guarded, method: str, path: str, key: str | None = None, body: bytes = b"") -> tuple[int, bytes]:
    """The path as it is spelled, which clients would tidy up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in (headers | {"content-length": str(len(body))}).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


UP = ("../../../../../../etc/passwd", "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd")
OUT = (*UP, "/etc/passwd", "%2fetc%2fpasswd", "..\\..\\etc\\passwd", "..%5c..%5cetc%5cpasswd", "x%00.txt")
OUT = (
    *OUT,
    "file:%2f%2f%2fetc%2fpasswd",
    "local/../../etc/passwd",
    "local:%2f%2f%2fetc%2fpasswd",
    "%252e%252e%252fetc",
)
CONTAINERS = (
    ("GET", "/v1/files/{}"),
    ("GET", "/v1/files/{}/content"),
    ("DELETE", "/v1/files/{}"),
    ("GET", "/v1/models/{}"),
    ("DELETE", "/v1/models/{}"),
    ("POST", "/v1/uploads/{}/complete"),
    ("GET", "/ap/v1/agent/tasks/{}/artifacts/{}"),
    ("GET", "/static/{}"),
    ("GET", "/docs/{}"),
)


async def test_no_name_reaches_out_of_its_container(free: Guarded) -> None:
    for name, (method, path) in product(OUT, CONTAINERS):
        status, body = raw(free, method, path.format(name, name))
        assert 400 <= status < 500, (method, path, name, body)
        assert b"root:" not in body


async def test_what_was_asked_is_counted(free: Guarded, database: Database) -> None:
    def metrics(key: str | None = None) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(free.ask("GET", "/metrics", key).text)
        samples = [sample for family in families for sample in family.samples]
        return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}

    client = OpenAI(base_url=f"{free.url}/v1", api_key="none")
    before = metrics()
    whole = client.chat.completions.create(model="scripted", messages=MESSAGES)
    list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    free.ask("GET", "/v1/models/no/such%20one")
    free.ask("GET", "/v1/nowhere")
    key = await free.key(database, Scope.TRAINING)
    free.ask("POST", "/v1/chat/completions", key, json=ASKED)
    after = metrics(key)

    def grown(name: str, **labels: str) -> float:
        series = (name, frozenset(labels.items()))
        return after.get(series, 0) - before.get(series, 0)

    chat = {"route": "/v1/chat/completions", "method": "POST"}
    assert grown("timestep_http_requests_total", **chat, status="200") == 2
    assert grown("timestep_http_request_seconds_count", **chat) == 2
    named = {"route": "/v1/models/{model}", "method": "GET"}
    assert grown("timestep_http_requests_total", **named, status="404") == 1
    # A refusal comes before the route, and leads to none.
    assert grown("timestep_http_requests_total", route="none", method="POST", status="403") == 1
    assert grown("timestep_http_requests_total", route="none", method="GET", status="401") >= 1
    assert whole.usage is not None
    for direction, tokens in (("in", whole.usage.prompt_tokens), ("out", whole.usage.completion_tokens)):
        assert grown("timestep_tokens_total", model="scripted", direction=direction) == 2 * tokens
    assert after["timestep_http_requests_in_flight", frozenset()] == 1
    up = {part: after["timestep_up", frozenset({("part", part)})] for part in ("model-server", "prefect-server")}
    assert up == {"model-server": 1, "prefect-server": 0}


async def test_no_error_of_the_server_logs_a_key(free: Guarded, database: Database) -> None:
    key = await free.key(database, Scope.ADMIN)
    for sent in (key, f"{key}x", SERVICE_KEY):
        for model in ("lab/x", "openai/x", "nowhere", 5, None):
            free.ask("POST", "/v1/chat/completions", sent, json={"model": model, "messages": MESSAGES})
        for path in ("/v1/steps", "/v1/batches", "/v1/files/file-x", f"/v1/models/{sent}", f"/v1/models?key={sent}"):
            free.ask("GET", path, sent)
        free.ask("POST", "/v1/files", sent, content=b"\xff", headers={"content-type": "multipart/form-data"})
    assert not secrets_in(free.log, key)
