"""OpenAI-compatible servers: where they are, and one client for each. Knows no agent and no model.

The address comes from the settings. Keys go into clients and headers only; nothing here shows one.
"""

import asyncio
import functools
import json
import re
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError, Timeout
from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, ValidationError

from timestep.errors import UsageError
from timestep.models.routing import SERVED_HEADER
from timestep.settings import Settings

# Of a step's request to our own model server: it waits for its turn, however many others do.
STEP_HEADER = "timestep-step"
OLLAMA_PORT = 11434
OLLAMA_CLOUD = "https://ollama.com"
# Of a name whose model runs in Ollama's cloud: gpt-oss:120b-cloud, kimi-k2.5:cloud. There it has the name without.
CLOUD_SUFFIX = re.compile(r"[:-]cloud$")

# Names of the versions that answered, noted here for whoever set a list; the Agents SDK drops them.
answered: ContextVar[list[str]] = ContextVar("answered")


@dataclass(frozen=True)
class Endpoint:
    """A server's base URL, with its path (``http://127.0.0.1:8000/v1``), and the key it asks for."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    of_step: bool = False
    ours: bool = False  # the service's own server: no proxy lies before it


class _Provider(BaseModel):
    model_config = ConfigDict(extra="forbid")

    base_url: str
    api_key: SecretStr | None = None


_providers = TypeAdapter(dict[str, _Provider])


def configured(settings: Settings) -> dict[str, Endpoint]:
    """The servers of the setting ``providers``, by prefix.

    Raises:
        UsageError: the setting can't be read; the message quotes no part of it that may be a key.
    """
    text = settings.providers.get_secret_value().strip()
    if not text.startswith("{"):
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        text = json.dumps({prefix.strip(): {"base_url": url.strip()} for prefix, _, url in pairs})
    try:
        providers = _providers.validate_json(text)
    except ValidationError as error:
        raise UsageError(f"{_SETTING} can't be read: {_where(error)}. {_EXAMPLE}") from None
    for prefix, provider in providers.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", prefix) or prefix == "local":
            raise UsageError(f"{_SETTING} names a prefix '{prefix}', which can't be one. {_EXAMPLE}")
        if not re.match(r"https?://[^/]", provider.base_url) or "@" in provider.base_url:
            raise UsageError(f"{_SETTING} has no http URL for '{prefix}', or one with a password in it. {_EXAMPLE}")
    return {prefix: _endpoint(provider) for prefix, provider in providers.items()}


_SETTING = "Setting 'providers' (TIMESTEP_PROVIDERS)"
_EXAMPLE = "Example: lab=http://127.0.0.1:8080/v1"


def _endpoint(provider: _Provider) -> Endpoint:
    return Endpoint(provider.base_url.rstrip("/"), provider.api_key.get_secret_value() if provider.api_key else None)


def _where(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else "it is no JSON object"


def model_server(settings: Settings, *, of_step: bool = False) -> Endpoint:
    """The service's own models: its model server where that is known, else its HTTP server."""
    url = settings.model_server_url or settings.api
    key = settings.service_key.get_secret_value() if settings.service_key else None
    return Endpoint(f"{url.rstrip('/')}/v1", key or None, of_step=of_step, ours=True)


def ollama(model: str, host: str | None = None, api_key: str | None = None) -> tuple[Endpoint, str]:
    """Where Ollama answers for ``model``, and what the model is called there.

    With a key, names that end in ``-cloud`` or ``:cloud`` are at ollama.com; so is every name where no ``host`` is
    given. Without a key a cloud name goes to the local Ollama, which passes it on when it is signed in.
    """
    if api_key and (host is None or CLOUD_SUFFIX.search(model)):
        return Endpoint(f"{OLLAMA_CLOUD}/v1", api_key), CLOUD_SUFFIX.sub("", model)
    return Endpoint(f"{_ollama_url(host)}/v1"), model


def provider(name: str, settings: Settings) -> tuple[Endpoint, str] | None:
    """Where a model with a provider's prefix is asked over HTTP, and its name there; None where it has no such prefix.

    Raises:
        UsageError: OpenAI's key is missing.
    """
    prefix, slash, model = name.partition("/")
    if not slash or not model:
        return None
    if (endpoint := configured(settings).get(prefix)) is not None:
        return endpoint, model
    if prefix == "ollama":
        key = settings.ollama_api_key
        return ollama(model, settings.ollama_host, key.get_secret_value() if key else None)
    if prefix == "openai":
        try:
            return openai(), model
        except OpenAIError as error:
            raise UsageError(f"Model '{name}' is OpenAI's, and there is no key: set OPENAI_API_KEY.") from error
    return None


@functools.cache  # a client takes 65 ms to make
def openai() -> Endpoint:
    """OpenAI's server and key, by the variables that its own client knows. OpenAIError: there is no key."""
    client = AsyncOpenAI()
    return Endpoint(str(client.base_url).rstrip("/"), client.api_key)


def listing(settings: Settings) -> dict[str, Endpoint]:
    """The providers that can be asked for their models, by prefix: the configured ones, and those with a host or key.

    Raises:
        UsageError: the setting ``providers`` can't be read.
    """
    known = configured(settings)
    key = settings.ollama_api_key
    if key or settings.ollama_host:
        ours = ollama("", settings.ollama_host, key.get_secret_value() if key else None)[0]
        known = {"ollama": ours, **known}
    with suppress(OpenAIError):  # no key
        known = {"openai": openai(), **known}
    return known


def _ollama_url(host: str | None) -> str:
    """Read as Ollama reads OLLAMA_HOST: scheme and port may be missing; an address to listen on means this machine."""
    scheme, there, rest = (host or "").strip().rpartition("://")
    parts = urlsplit(f"//{rest}")
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError(f"Ollama host '{parts.netloc.rpartition('@')[2]}' has no valid port.") from error
    name = parts.hostname or "127.0.0.1"
    name = "127.0.0.1" if name in ("0.0.0.0", "::") else f"[{name}]" if ":" in name else name
    port = port or (OLLAMA_PORT if not there else 443 if scheme == "https" else 80)
    return f"{scheme or 'http'}://{name}:{port}{parts.path.rstrip('/')}"


# A client's connections belong to the event loop that opened them. The inner key holds the endpoint.
_clients: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, AsyncOpenAI]]" = WeakKeyDictionary()


def client(endpoint: Endpoint, max_retries: int = 2) -> AsyncOpenAI:
    """The client of a server: one pool of connections for each event loop.

    ``max_retries`` is the client's own, for connection errors, 408, 409, 429 and 5xx.
    """
    try:
        known = _clients.setdefault(asyncio.get_running_loop(), {})
    except RuntimeError:  # no loop yet: the client is whoever asks's own
        known = {}
    key = (endpoint, max_retries)
    if key not in known:
        known[key] = AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key or "none",
            max_retries=max_retries,
            default_headers={STEP_HEADER: "1"} if endpoint.of_step else None,
            # Generation on a small machine may take minutes.
            timeout=Timeout(600, connect=5),
            # A plain-HTTP server needs no TLS context, which takes 20 ms to make.
            http_client=DefaultAsyncHttpxClient(
                verify=endpoint.base_url.startswith("https"),
                trust_env=not endpoint.ours,
                event_hooks={"response": [_note]},
            ),
        )
    return known[key]


async def _note(response: Any) -> None:
    if SERVED_HEADER in response.headers:
        answered.get([]).append(response.headers[SERVED_HEADER])
