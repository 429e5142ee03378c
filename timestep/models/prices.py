"""What a model call costs in USD, from the prices that the package genai-prices carries. Nothing is fetched.

A local model costs nothing. A model that is not in the list has no known cost, which is not the same.
"""

import warnings
from urllib.parse import urlsplit

from agents import Usage

from timestep.models.endpoints import CLOUD_SUFFIX, OLLAMA_CLOUD
from timestep.models.routing import PREFIX

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_OLLAMA, _OLLAMA_CLOUD = "ollama/", urlsplit(OLLAMA_CLOUD).hostname
# Prefixes of the Agents SDK that say which client is used, not who is paid.
_CLIENTS = ("litellm/", "any-llm/")


def cost(model: str, usage: Usage, api_url: str | None = None) -> float | None:
    """USD of one call, or None where the price isn't known.

    Args:
        model: As it was asked for: 'local/assistant', 'gpt-4o-mini', 'anthropic/claude-…', 'litellm/anthropic/…'.
        usage: Tokens of the call; cached input tokens have a price of their own.
        api_url: Where the call went, if that is known; a server on this machine is free.
    """
    host = None if api_url is None else urlsplit(api_url).hostname
    if model.startswith(PREFIX):
        return 0.0
    # Ollama's cloud has plans, no prices; an Ollama on this machine passes on what runs there.
    if host == _OLLAMA_CLOUD or CLOUD_SUFFIX.search(model):
        return None
    if host in _LOOPBACK or model.startswith(_OLLAMA):
        return 0.0
    for client in _CLIENTS:
        model = model.removeprefix(client)
    provider, slash, name = model.partition("/")
    return _price(name, provider, usage) if slash else _price(model, "openai", usage)


def _price(name: str, provider: str, usage: Usage) -> float | None:
    # Imported where it is first needed: its table takes 0.1 s to load, which a local step need not pay.
    import genai_prices

    details = usage.input_tokens_details
    counts = {
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": details.cached_tokens,
        "cache_write_tokens": getattr(details, "cache_write_tokens", 0),
        "output_tokens": usage.output_tokens,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens = genai_prices.Usage(**{key: count for key, count in counts.items() if count})
            return float(genai_prices.calc_price(tokens, name, provider_id=provider).total_price)
    except (LookupError, ValueError):
        return None
