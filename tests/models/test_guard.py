"""Servers for this machine's own programs: by the service's key, and never by pages that somebody else made."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from timestep.models.guard import Guarded
from timestep.models.server import create_app
from timestep.settings import Settings

KEY = "ts-of-the-service"
HERE = "http://127.0.0.1:8001"
SOCKET = "ws://127.0.0.1:8001/x"


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        await socket.close()
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


LED = [
    ({"host": "evil.example"}, 403),
    ({"host": "127.0.0.1.evil.example:8001"}, 403),
    ({"host": ""}, 403),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "http://127.0.0.1:9"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": HERE}, 200),
    ({"host": "localhost:8001", "origin": "http://localhost:8001"}, 200),
    ({"host": "[::1]:8001"}, 200),
]


@pytest.mark.parametrize(("headers", "status"), LED)
def test_a_browser_that_was_led_here_is_refused(headers: dict[str, str], status: int) -> None:
    client = TestClient(Guarded(answering), base_url=HERE)
    assert client.post("/x", headers=headers).status_code == status
    if status == 403:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET, headers=headers):
            pass
    else:
        with client.websocket_connect(SOCKET, headers=headers):
            pass


def test_who_comes_from_elsewhere_may_know_it_by_any_name() -> None:
    client = TestClient(Guarded(answering), base_url="http://192.0.2.7")
    assert client.get("/x", headers={"host": "models.lab"}).status_code == 200
    assert client.get("/x", headers={"host": "models.lab", "origin": "http://evil.example"}).status_code == 403


def test_pages_of_a_named_site_may_ask_through_a_proxy_of_any_name() -> None:
    client = TestClient(Guarded(answering, origins=["https://ours.example"]), base_url=HERE)
    for origin, status in (("https://ours.example", 200), ("http://ours.example", 403), ("https://evil.example", 403)):
        assert client.post("/x", headers={"host": "inside", "origin": origin}).status_code == status


def test_with_a_service_key_the_model_server_answers_nobody_without_it(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"model": str(tmp_path / "any.gguf"), "messages": [{"role": "user", "content": "hi"}]}
    requests = [
        ("GET", "/v1/models", None),
        ("DELETE", "/v1/models/local/x", None),
        ("POST", "/v1/chat/completions", asked),
    ]
    settings = Settings(home=tmp_path, model="scripted", service_key=SecretStr(KEY))
    with TestClient(create_app(settings), base_url=HERE) as client:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
            for method, path, body in requests:
                answer = client.request(method, path, json=body, headers=header)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        by_key = {"authorization": f"Bearer {KEY}"}
        found = [client.request(method, path, json=body, headers=by_key) for method, path, body in requests]
        assert [answer.status_code for answer in found] == [200, 404, 400]
        assert client.get("/health").status_code == 200
        # By whatever name it is asked, as probes and pods elsewhere do.
        elsewhere = {"host": "timestep-model-server:8001"}
        assert client.get("/v1/models", headers={**by_key, **elsewhere}).status_code == 200
        assert client.get("/ready", headers={"host": "localhost"}).status_code == 503


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings"])
def test_a_body_of_another_content_type_is_refused(path: str, tmp_path: Path) -> None:
    with TestClient(create_app(Settings(home=tmp_path, model="scripted")), base_url=HERE) as client:
        answer = client.post(
            f"/v1/{path}", content=b'\xff{"model": "scripted"}', headers={"content-type": "text/plain"}
        )
        assert (answer.status_code, "application/json" in answer.text) == (400, True)
