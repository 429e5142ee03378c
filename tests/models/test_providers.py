"""Providers against real servers on loopback: our model server, and Ollama where it is installed."""

import asyncio
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, ModelSettings, RunConfig, Runner, set_tracing_disabled
from agents.models.openai_responses import OpenAIResponsesModel
from openai import APIStatusError

from tests.conftest import ROOT, environment, free_port
from tests.models.conftest import SMOLLM2, Server, wait_for
from timestep.errors import NotFoundError, ServiceUnavailableError, UsageError
from timestep.models import endpoints
from timestep.models.endpoints import Endpoint
from timestep.models.ollama import OllamaModel, OllamaModelProvider
from timestep.models.providers import (
    MultiModelProvider,
    MultiModelProviderMap,
    listed_models,
    remote_model,
    served_model,
)
from timestep.server.inference import local_names
from timestep.server.upstream import Upstream
from timestep.settings import Settings

set_tracing_disabled(True)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OLLAMA_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    endpoints.openai.cache_clear()


def settings(**values: Any) -> Settings:
    return Settings(home=Path("/nowhere"), **values)


async def ask(provider: Any, model: str, *, stream: bool = False) -> str:
    agent = Agent(name="a", model=model, model_settings=ModelSettings(temperature=0, max_tokens=8))
    config = RunConfig(model_provider=provider)
    question = "Tell me about the ocean."
    if not stream:
        return str((await Runner.run(agent, question, run_config=config)).final_output)
    result = Runner.run_streamed(agent, question, run_config=config)
    async for _ in result.stream_events():
        pass
    return str(result.final_output)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prefix", ["lab", "local", "ollama"])
async def test_prefixes_lead_to_openai_compatible_servers(prefix: str, stream: bool, model_server: Server) -> None:
    known = settings(
        providers=f"lab={model_server.api}", model_server_url=model_server.url, ollama_host=model_server.url
    )
    assert "ocean" in (await ask(MultiModelProvider(settings=known), f"{prefix}/{SMOLLM2}", stream=stream)).lower()


async def test_a_key_is_sent_and_never_shown(model_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    known = settings(
        providers={"lab": {"base_url": model_server.api, "api_key": "sk-hidden"}}, ollama_api_key="hidden2"
    )
    provider = MultiModelProvider(settings=known)
    await ask(provider, f"lab/{SMOLLM2}")
    endpoint = endpoints.configured(known)["lab"]
    assert endpoint.api_key == endpoints.client(endpoint).api_key == "sk-hidden"
    assert "hidden" not in f"{known!r} {known.model_dump()} {endpoint!r} {caplog.text}"
    # A service's processes get equal settings.
    child = "from timestep.settings import Settings; from timestep.models.endpoints import configured; s = Settings(); "
    child += "print(configured(s)['lab'].api_key, s.ollama_api_key.get_secret_value())"
    variables = environment() | known.environment()
    done = subprocess.run([sys.executable, "-c", child], env=variables, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["sk-hidden", "hidden2"], done.stderr


@pytest.mark.parametrize(
    ("providers", "why"),
    [
        ('{"lab": {"base_url": "http://x", "api_key": "hidden"', "it is no JSON object"),
        ('{"lab": {"base_ur": "http://x", "api_key": "hidden"}}', "lab.base_url: Field required"),
        ('{"lab": "hidden"}', "lab: "),
        ('{"lab": {"base_url": "ftp://hidden"}}', "no http URL for 'lab'"),
        ('{"lab": {"base_url": "http://u:hidden@x"}}', "no http URL for 'lab'"),
        ("lab", "no http URL for 'lab'"),
        ("local=http://x", "a prefix 'local'"),
        ("a/b=http://x", "a prefix 'a/b'"),
    ],
)
def test_a_setting_that_cannot_be_read_is_named_without_its_keys(providers: str, why: str) -> None:
    with pytest.raises(UsageError, match="TIMESTEP_PROVIDERS") as caught:
        endpoints.configured(settings(providers=providers))
    assert why in str(caught.value) and "hidden" not in str(caught.value)
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("model", "host", "key", "url", "name"),
    [
        ("qwen3", None, None, "http://127.0.0.1:11434/v1", "qwen3"),
        ("qwen3", "0.0.0.0", None, "http://127.0.0.1:11434/v1", "qwen3"),
        ("qwen3", "0.0.0.0:1234", None, "http://127.0.0.1:1234/v1", "qwen3"),
        ("qwen3", ":1234", None, "http://127.0.0.1:1234/v1", "qwen3"),
        ("qwen3", "box", None, "http://box:11434/v1", "qwen3"),
        ("qwen3", "http://box", None, "http://box:80/v1", "qwen3"),
        ("qwen3", "https://box/ollama/", None, "https://box:443/ollama/v1", "qwen3"),
        ("qwen3", "[::1]:1234", None, "http://[::1]:1234/v1", "qwen3"),
        ("qwen3", None, "k", "https://ollama.com/v1", "qwen3"),
        ("qwen3", "box", "k", "http://box:11434/v1", "qwen3"),
        ("gpt-oss:120b-cloud", "box", "k", "https://ollama.com/v1", "gpt-oss:120b"),
        ("kimi-k2.5:cloud", None, "k", "https://ollama.com/v1", "kimi-k2.5"),
        ("gpt-oss:120b-cloud", None, None, "http://127.0.0.1:11434/v1", "gpt-oss:120b-cloud"),
    ],
)
def test_ollama_is_local_or_in_its_cloud(model: str, host: str | None, key: str | None, url: str, name: str) -> None:
    endpoint, called = endpoints.ollama(model, host, key)
    assert (endpoint.base_url, called) == (url, name)
    assert endpoint.api_key == (key if "ollama.com" in url else None)  # the key goes nowhere else


def test_ollama_follows_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "k")
    model = OllamaModelProvider().get_model("gpt-oss:120b-cloud")
    assert isinstance(model, OllamaModel)
    assert (str(model.model), model._client.api_key) == ("gpt-oss:120b", "k")
    monkeypatch.setenv("OLLAMA_HOST", "box:1")
    assert str(OllamaModelProvider().get_model("qwen3")._client.base_url) == "http://box:1/v1/"  # type: ignore[attr-defined]


def test_in_the_library_no_prefix_is_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'gpt-4\.1' is OpenAI's, and there is no key: set OPENAI_API_KEY"):
        MultiModelProvider().get_model("gpt-4.1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    for name in ("gpt-4.1", "openai/gpt-4.1"):
        model = MultiModelProvider().get_model(name)
        assert isinstance(model, OpenAIResponsesModel) and model.model == "gpt-4.1"


def test_an_unknown_prefix_gets_a_suggestion() -> None:
    with pytest.raises(NotFoundError, match=r"No model 'olama/x'\. Did you mean 'ollama/…'\?"):
        MultiModelProvider().get_model("olama/x")


def test_litellm_is_an_extra() -> None:
    try:
        import litellm  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r"pip install 'timestep\[litellm\]'"):
            MultiModelProvider().get_model("litellm/anthropic/claude")
    else:
        assert type(MultiModelProvider().get_model("litellm/anthropic/claude")).__name__ == "LitellmModel"


def test_what_a_caller_maps_goes_first() -> None:
    mine = OllamaModelProvider(host="box:1")
    own = MultiModelProviderMap()
    own.add_provider("openai", mine)
    model = MultiModelProvider(provider_map=own).get_model("openai/qwen3")
    assert isinstance(model, OllamaModel)


async def test_in_the_service_listed_names_win_then_prefixes(model_server: Server) -> None:
    known = settings(model_server_url=model_server.url, providers=f"lab={model_server.api}")
    listed = frozenset({*await listed_models(Endpoint(model_server.api)), "lab/mine"})
    for name, full, where in [
        (SMOLLM2, f"local/{SMOLLM2}", model_server.api),
        ("local/anything", "local/anything", model_server.api),
        ("lab/mine", "local/lab/mine", model_server.api),
        ("ollama/qwen3", "ollama/qwen3", "http://127.0.0.1:11434/v1"),
    ]:
        found, model = served_model(name, listed, known)
        assert (found, str(model._client.base_url)) == (full, f"{where}/")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("smollm2-135m-instuct", SMOLLM2), ("gpt-4.1", "openai/gpt-4.1"), ("olama/qwen3", "ollama/…"), ("", None)],
)
def test_in_the_service_a_name_without_a_prefix_is_not_found(name: str, nearest: str | None) -> None:
    with pytest.raises(NotFoundError) as caught:
        remote_model(name, frozenset({SMOLLM2, "assistant"}), settings())
    assert caught.value.status == 404
    assert nearest is None or f"Did you mean '{nearest}'?" in str(caught.value)


async def test_a_server_that_is_away_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnavailableError, match=url):
        await listed_models(Endpoint(f"{url}/v1"))


async def test_a_server_that_answers_with_an_error_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port := free_port()):
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(ServiceUnavailableError, match=url):
            await listed_models(Endpoint(f"{url}/v1"))
        upstream = Upstream(url)
        with pytest.raises(ServiceUnavailableError, match=url):
            await local_names(upstream)
        await upstream.close()


async def test_no_proxy_lies_before_our_own_models(model_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    known = settings(model_server_url=model_server.url)
    assert SMOLLM2 in await listed_models(endpoints.model_server(known))
    assert "ocean" in (await ask(MultiModelProvider(settings=known), f"local/{SMOLLM2}")).lower()


async def test_openais_key_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    first, again = endpoints.provider("openai/a", settings()), endpoints.listing(settings())["openai"]
    assert first is not None and first[0] is again and again.api_key == "k"


def test_clients_are_shared_within_a_loop_and_not_between_loops() -> None:
    endpoint = Endpoint("http://127.0.0.1:1/v1")

    async def twice() -> tuple[Any, Any, Any]:
        return endpoints.client(endpoint), endpoints.client(endpoint), endpoints.client(endpoint, 0)

    first, again, other = asyncio.run(twice())
    assert first is again and first is not other and other.max_retries == 0
    assert asyncio.run(twice())[0] is not first


def test_one_provider_serves_one_loop_after_the_other(model_server: Server) -> None:
    provider = MultiModelProvider(settings=settings(providers=f"lab={model_server.api}"), max_retries=0)
    for _ in range(2):
        assert "ocean" in asyncio.run(ask(provider, f"lab/{SMOLLM2}")).lower()


@pytest.fixture(scope="module")
def ollama(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[str]:
    """A real Ollama with SmolLM2 in it."""
    program = shutil.which("ollama")
    if program is None:
        pytest.skip("no ollama on the PATH; tests/models/ollama.sh builds one")
    home = tmp_path_factory.mktemp("ollama")
    host = f"127.0.0.1:{free_port()}"
    variables = os.environ | {"HOME": str(home), "OLLAMA_HOST": host, "OLLAMA_MODELS": str(home / "models")}
    template = (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    )
    file = home / "Modelfile"
    file.write_text(f'FROM {smollm2}\nTEMPLATE """{template}"""\nPARAMETER num_ctx 1024\n')
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([program, "serve"], env=variables, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers_ollama(host) or server.poll() is not None, 30)
        subprocess.run([program, "create", "smol", "-f", str(file)], env=variables, check=True, capture_output=True)
        yield host
    finally:
        server.terminate()
        server.wait(20)


def answers_ollama(host: str) -> bool:
    import httpx

    try:
        return httpx.get(f"http://{host}/api/version", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("stream", [False, True])
async def test_a_real_ollama_answers(ollama: str, stream: bool) -> None:
    provider = MultiModelProvider(settings=settings(ollama_host=ollama))
    assert "ocean" in (await ask(provider, "ollama/smol", stream=stream)).lower()


async def test_a_real_ollama_says_what_it_has_not(ollama: str) -> None:
    with pytest.raises(APIStatusError, match="model 'nothing' not found"):
        await ask(MultiModelProvider(settings=settings(ollama_host=ollama)), "ollama/nothing")
