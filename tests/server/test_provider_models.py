"""Providers' models over our own HTTP server: listed names win, then prefixes, else 404."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.conftest import free_port
from tests.models.conftest import SMOLLM2, Server, model_server, serve
from timestep.models.files import WORDLLAMA

__all__ = ["model_server", "serve"]

OCEAN: list[Any] = [{"role": "user", "content": "Tell me about the ocean."}]


class Gateway(ThreadingHTTPServer):
    """Before the real model server, as a provider's gateway is: it wants a key, and notes what it is sent."""

    def __init__(self, behind: str) -> None:
        self.seen: list[dict[str, str | None]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                gateway.seen.append({name: self.headers[name] for name in ("authorization", "cookie", "x-mine")})
                if self.headers["authorization"] != "Bearer sk-ours":
                    answer = httpx.Response(401, json={"error": {"message": "Wrong key.", "type": "x", "code": "y"}})
                else:
                    url = f"{behind}{self.path.removeprefix('/api')}"
                    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=60)
                self.send_response(answer.status_code)
                self.send_header("content-type", answer.headers["content-type"])
                self.end_headers()
                self.wfile.write(answer.content)

            def do_GET(self) -> None:
                held = self.headers["authorization"] == "Bearer sk-ours"
                answer = (
                    httpx.get(f"{behind}{self.path.removeprefix('/api')}") if held else httpx.Response(401, text="")
                )
                self.send_response(answer.status_code)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def gateway(model_server: Server) -> Iterator[Gateway]:
    server = Gateway(model_server.api)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def client(serve: Callable[..., Server], model_server: Server, gateway: Gateway) -> OpenAI:
    url = f"http://127.0.0.1:{gateway.server_port}/api"
    providers = f'{{"lab": {{"base_url": "{url}", "api_key": "sk-ours"}}, "shut": {{"base_url": "{url}"}}, '
    providers += f'"away": {{"base_url": "http://127.0.0.1:{free_port()}/v1"}}}}'
    public = serve(
        "timestep.server", MODEL_SERVER_URL=model_server.url, PROVIDERS=providers, OLLAMA_HOST=model_server.url
    )
    return OpenAI(base_url=public.api, api_key="of-our-client", max_retries=0)


def ask(client: OpenAI, model: str, **options: Any) -> Any:
    return client.chat.completions.create(model=model, messages=OCEAN, temperature=0, max_tokens=12, **options)


@pytest.mark.parametrize("prefix", ["lab", "ollama"])
def test_a_prefix_leads_to_its_provider(prefix: str, client: OpenAI) -> None:
    whole = ask(client, f"{prefix}/{SMOLLM2}").choices[0].message.content
    assert whole == ask(client, SMOLLM2).choices[0].message.content
    chunks = list(ask(client, f"{prefix}/{SMOLLM2}", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_what_a_provider_lists_is_listed_by_its_prefix(client: OpenAI) -> None:
    listed = {model.id: model.owned_by for model in client.models.list()}
    ours = {SMOLLM2: "timestep", WORDLLAMA: "timestep"}  # the providers that don't answer, or refuse, list nothing
    assert listed == ours | {f"{prefix}/{name}": prefix for prefix in ("lab", "ollama") for name in ours}
    assert client.models.retrieve(f"lab/{SMOLLM2}").owned_by == "lab"
    for name in ("lab/nothing", f"away/{SMOLLM2}"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)
    with pytest.raises(openai.BadRequestError, match="is a provider's"):
        client.models.delete(f"lab/{SMOLLM2}")


def test_texts_and_embeddings_go_there_too(client: OpenAI) -> None:
    ask: dict[str, Any] = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 4}
    text = client.completions.create(model=f"lab/{SMOLLM2}", **ask).choices[0].text
    assert text == client.completions.create(model=SMOLLM2, **ask).choices[0].text
    theirs = client.embeddings.create(model=f"lab/{WORDLLAMA}", input="a cat")
    assert theirs.data == client.embeddings.create(model=WORDLLAMA, input="a cat").data


def test_our_key_goes_there_and_our_clients_does_not(client: OpenAI, gateway: Gateway) -> None:
    ask(client, f"lab/{SMOLLM2}", extra_headers={"cookie": "c", "x-mine": "m"})
    assert gateway.seen[-1] == {"authorization": "Bearer sk-ours", "cookie": None, "x-mine": None}


def test_a_providers_refusal_goes_through(client: OpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.AuthenticationError, match="Wrong key"):
        ask(client, f"shut/{SMOLLM2}")
    assert gateway.seen[-1]["authorization"] is None
    with pytest.raises(openai.NotFoundError, match="No model 'nothing'"):
        ask(client, "lab/nothing")


def test_what_leads_nowhere_is_said(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match=r"No provider answers at 'http://127\S+'\.") as caught:
        ask(client, "away/x")
    assert caught.value.status_code == 503
    for name in ("gpt-4.1", "nowhere/x", "lab/", "/x", ""):
        with pytest.raises(openai.NotFoundError):
            ask(client, name)
    with pytest.raises(openai.NotFoundError, match=r"Did you mean 'lab/…'"):
        ask(client, "labs/x")
    with pytest.raises(openai.BadRequestError, match="set OPENAI_API_KEY"):
        ask(client, "openai/gpt-4.1")


def test_a_service_without_a_model_server_has_its_providers_models(
    serve: Callable[..., Server], gateway: Gateway
) -> None:
    url = f"http://127.0.0.1:{gateway.server_port}/api"
    public = serve("timestep.server", PROVIDERS=f'{{"lab": {{"base_url": "{url}", "api_key": "sk-ours"}}}}')
    assert httpx.get(f"{public.url}/health").json() == {"status": "ok"}
    client = OpenAI(base_url=public.api, api_key="any", max_retries=0)
    assert sorted(model.id for model in client.models.list()) == [f"lab/{SMOLLM2}", f"lab/{WORDLLAMA}"]
    assert ask(client, f"lab/{SMOLLM2}").choices[0].message.content
    assert client.responses.create(model=f"lab/{SMOLLM2}", input="Hello.", max_output_tokens=8).output_text
    for name in (SMOLLM2, "local/assistant@3", "x"):
        for refused in (
            lambda name=name: ask(client, name),
            lambda name=name: client.embeddings.create(model=name, input="a cat"),
            lambda name=name: client.responses.create(model=name, input="Hello."),
            lambda name=name: client.models.retrieve(name),
        ):
            with pytest.raises(openai.NotFoundError, match=f"No model '{name}'"):
                refused()
    for body in (b"", b"[]", b"{", b'{"model": 5}'):
        response = httpx.post(f"{public.api}/chat/completions", content=body)
        assert response.status_code == 400 and "'model'" in response.text, body
