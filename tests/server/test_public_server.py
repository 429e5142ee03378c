"""The public HTTP server: the model server's answers, as they come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai import OpenAI

from tests.models.conftest import SMOLLM2, Server, calculator, calling, model_server, serve, wait_for
from timestep.models.files import WORDLLAMA

__all__ = ["calculator", "calling", "model_server", "serve"]

OCEAN: list[Any] = [{"role": "user", "content": "Tell me about the ocean."}]


@pytest.fixture(scope="module")
def public(serve: Callable[..., Server], model_server: Server) -> Server:
    return serve("timestep.server", MODEL_SERVER_URL=model_server.url)


@pytest.fixture(scope="module")
def document(public: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{public.url}/openapi.json", timeout=60).json())


@pytest.fixture
def client(public: Server) -> OpenAI:
    return OpenAI(base_url=public.api, api_key="none", max_retries=0)


def test_it_answers_whole_and_streamed(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": OCEAN, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_a_stream_is_not_held_back(public: Server, model_server: Server) -> None:
    body = {"model": SMOLLM2, "messages": OCEAN, "stream": True, "temperature": 1.5, "max_tokens": 900, "n": 9}
    with httpx.stream("POST", f"{public.api}/chat/completions", json=body, timeout=120) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = (line for line in response.iter_lines() if line)
        assert all(next(events).startswith("data: {") for _ in range(5))
        assert httpx.get(f"{model_server.url}/health").json()["running"]


def test_tools_go_through(client: OpenAI, calling: list[Any], calculator: Any) -> None:
    ask: dict[str, Any] = {"model": SMOLLM2, "messages": calling, "tools": [calculator], "temperature": 0}
    with client.chat.completions.stream(**ask, max_tokens=60) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert call.function.arguments == '{"expression": "8+5"}'


def test_errors_go_through(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'smollm2-135m-instruct'"):
        client.chat.completions.create(model="smollm2-135m", messages=OCEAN)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError, match="'functions' is not supported") as refused:
        client.chat.completions.create(model=SMOLLM2, messages=OCEAN, functions=[{"name": "now"}])
    assert (refused.value.param, refused.value.code) == ("functions", "unsupported_parameter")
    assert [model.id for model in client.models.list()] == [SMOLLM2, WORDLLAMA]


def test_an_agents_own_model_is_not_deleted(client: OpenAI) -> None:
    with pytest.raises(openai.ConflictError, match="is the one of agent 'assistant'"):
        client.models.delete("local/assistant")
    with pytest.raises(openai.BadRequestError, match="was not trained here"):
        client.models.delete(SMOLLM2)
    with pytest.raises(openai.NotFoundError):
        client.models.delete("local/nobody@1")


CHAT: dict[str, Any] = {"messages": OCEAN, "max_tokens": 4}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"model": SMOLLM2, **CHAT}),
        ("/chat/completions", {"model": SMOLLM2, **CHAT, "n": 2, "logprobs": True, "top_logprobs": 2}),
        ("/completions", {"model": SMOLLM2, "prompt": ["a", "b"], "max_tokens": 2}),
        ("/completions", {"model": SMOLLM2, "prompt": "The ocean", "max_tokens": 2, "echo": True, "logprobs": 2}),
        ("/completions", {"model": SMOLLM2, "prompt": "The ocean", "max_tokens": 2, "logprobs": 0}),
        ("/embeddings", {"model": WORDLLAMA, "input": ["a cat", "a dog"]}),
        ("/embeddings", {"model": WORDLLAMA, "input": "a cat", "encoding_format": "base64"}),
        ("/models", None),
        ("/models/{model}", None),
    ],
)
def test_requests_and_answers_are_as_documented(path: str, body: Any, public: Server, document: dict[str, Any]) -> None:
    operation = document["paths"][f"/v1{path}"]["get" if body is None else "post"]
    if body is None:
        answer = httpx.get(f"{public.api}{path.replace('{model}', SMOLLM2)}")
    else:
        jsonschema.validate(body, operation["requestBody"]["content"]["application/json"]["schema"])
        answer = httpx.post(f"{public.api}{path}", json=body, timeout=60)
    assert answer.status_code == 200
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**schema, "components": document["components"]})


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings"])
def test_what_is_refused_is_so_in_the_document(path: str, public: Server, document: dict[str, Any]) -> None:
    body = {"model": SMOLLM2, "messages": OCEAN, "prompt": "a", "input": "a", "nonsense": 1}
    schema = document["paths"][f"/v1{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    known = {name: value for name, value in body.items() if name in schema["properties"]} | {"nonsense": 1}
    with pytest.raises(jsonschema.ValidationError, match="'nonsense' was unexpected"):
        jsonschema.validate(known, schema)
    refused = httpx.post(f"{public.api}{path}", json=known)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "nonsense")
    del known["nonsense"]
    refused = httpx.post(f"{public.api}{path}", json=known, params={"api-version": "1"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "api-version")


@pytest.mark.parametrize("body", ["", "{", "[]", "[" * 100_000, '{"model": NaN}'])
def test_a_body_that_is_no_request_gets_400(body: str, public: Server) -> None:
    for path in ("/chat/completions", "/completions", "/embeddings"):
        response = httpx.post(f"{public.api}{path}", content=body, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


def test_an_unknown_path_gets_openais_shape(public: Server) -> None:
    response = httpx.get(f"{public.api}/nothing")
    assert response.status_code == 404
    assert "/v1/nothing" in response.json()["error"]["message"]


@pytest.mark.parametrize("model", ["/etc/x.gguf", "local//etc/x.gguf", "~/x.gguf", "https://example.com/x.gguf"])
def test_the_servers_own_files_are_not_for_the_asking(model: str, client: OpenAI, public: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=model, messages=OCEAN)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=model, prompt="x")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="x")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)
    with pytest.raises(openai.NotFoundError):
        client.models.delete(model)
    for background in (False, True):
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model=model, input="x", background=background)
    for step in ({"model": model}, {"inference": {"request": {"model": model, "input": "x"}}}):
        assert httpx.post(f"{public.api}/steps", json=step, timeout=30).status_code == 404


@pytest.mark.parametrize("path", ["/etc/model.gguf", "%2Fetc%2Fmodel.gguf", "%252Fetc%252Fmodel.gguf", "%2525x"])
def test_no_spelling_of_a_path_gets_through(path: str, public: Server) -> None:
    assert httpx.get(f"{public.api}/models/{path}").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_generation(stream: bool, public: Server, model_server: Server) -> None:
    body = {"model": SMOLLM2, "messages": OCEAN, "stream": stream, "temperature": 1.5, "max_tokens": 900, "n": 99}
    asking = httpx.stream("POST", f"{public.api}/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.5))
    with pytest.raises(httpx.TimeoutException), asking as response:
        next(response.iter_lines())
        raise httpx.ReadTimeout("left")
    wait_for(lambda: not httpx.get(f"{model_server.url}/health").json()["running"], 60)


def test_without_a_model_server_it_says_so(serve: Callable[..., Server]) -> None:
    alone = serve("timestep.server", MODEL_SERVER_URL="http://127.0.0.1:9")
    assert httpx.get(f"{alone.url}/health").status_code == 503
    assert httpx.get(f"{alone.url}/livez").status_code == 204
    response = httpx.post(f"{alone.api}/chat/completions", json={"model": SMOLLM2, "messages": OCEAN})
    assert response.status_code == 503
    assert "timestep up" in response.json()["error"]["message"]


def test_asking_for_health_keeps_no_connection(public: Server) -> None:
    def connections() -> int:
        files = Path(f"/proc/{public.process.pid}/fd").iterdir()
        return sum(str(file.readlink()).startswith("socket:") for file in files if file.is_symlink())

    with httpx.Client() as client:
        before = client.get(f"{public.url}/health").is_success and connections()
        for _ in range(20):
            assert client.get(f"{public.url}/health").json() == {"status": "ok"}
        assert connections() <= before + 1
