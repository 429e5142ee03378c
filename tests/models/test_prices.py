"""What model calls cost: from the packaged prices, without a network."""

import socket
from typing import Any

import pytest
from agents import Usage
from openai.types.responses.response_usage import InputTokensDetails

from timestep.agents.durable.model_calls import _api_url
from timestep.models.ollama import OllamaModelProvider
from timestep.models.prices import cost
from timestep.settings import Settings

TOKENS = Usage(requests=1, input_tokens=1000, output_tokens=100, total_tokens=1100)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("prices are asked of nobody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_models_tokens_have_their_price_whatever_client_asks() -> None:
    price = cost("gpt-4o-mini", TOKENS)
    assert price == pytest.approx(1000 * 0.15e-6 + 100 * 0.6e-6)
    assert cost("openai/gpt-4o-mini", TOKENS) == cost("litellm/openai/gpt-4o-mini", TOKENS) == price
    anthropic = cost("anthropic/claude-sonnet-4-5", TOKENS)
    assert anthropic == cost("litellm/anthropic/claude-sonnet-4-5", TOKENS) == pytest.approx(0.0045)


def test_cached_tokens_are_cheaper() -> None:
    details = InputTokensDetails.model_validate({"cached_tokens": 900, "cache_write_tokens": 0})
    cached = Usage(requests=1, input_tokens=1000, input_tokens_details=details, output_tokens=100, total_tokens=1100)
    cheaper, whole = cost("gpt-4o-mini", cached), cost("gpt-4o-mini", TOKENS)
    assert cheaper is not None and whole is not None and 0 < cheaper < whole


@pytest.mark.parametrize("model", ["local/assistant@3", "local/smollm2-135m-instruct", "ollama/llama3.2"])
def test_a_local_model_costs_nothing(model: str) -> None:
    assert cost(model, TOKENS) == 0.0


def test_a_server_on_this_machine_costs_nothing() -> None:
    assert cost("gpt-4o-mini", TOKENS, "http://127.0.0.1:8080/v1") == 0.0
    assert cost("gpt-4o-mini", TOKENS, "https://api.openai.com/v1") == cost("gpt-4o-mini", TOKENS)


@pytest.mark.parametrize("model", ["gpt-of-tomorrow", "ours/llama-3-70b", "ollama/gpt-oss:120b-cloud", "PlannedModel"])
def test_an_unknown_price_is_not_nothing(model: str) -> None:
    assert cost(model, TOKENS) is None


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("ollama/kimi-k2.5:cloud", None),
        ("ollama/gpt-oss:120b-cloud", "http://127.0.0.1:11434/v1"),
        ("gpt-oss:120b-cloud", "http://127.0.0.1:11434/v1"),
        ("ollama/qwen3", "https://ollama.com/v1"),
        ("kimi-k2.5", "https://ollama.com/v1"),
    ],
)
def test_ollamas_cloud_is_not_free_whichever_way_it_is_asked(model: str, url: str | None) -> None:
    assert cost(model, TOKENS, url) is None
    assert cost("ollama/qwen3", TOKENS, "http://lab:11434/v1") == 0.0


async def test_a_key_alone_sends_every_name_to_the_cloud_and_no_price_is_made_up() -> None:
    model = OllamaModelProvider(api_key="none", settings=Settings(ollama_host=None)).get_model("qwen3")
    assert cost("ollama/qwen3", TOKENS, _api_url(model)) is None
