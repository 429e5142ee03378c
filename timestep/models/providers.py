"""From a model's name to an Agents SDK ``Model``: the local model server, or the SDK's own providers."""

import functools

from agents import Model, MultiProvider, OpenAIChatCompletionsModel
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

from timestep.errors import ServiceUnavailableError
from timestep.settings import Settings

LOCAL = "local/"


def is_local(name: str, known: frozenset[str]) -> bool:
    """Whether the model server answers for a name: by prefix, as a known model, or as a GGUF file."""
    return name.startswith(LOCAL) or name.partition("@")[0] in known or name.endswith(".gguf")


def local_model(name: str, settings: Settings) -> Model:
    """The model server's model of that name, such as ``local/assistant`` or ``local/assistant@3``.

    Raises:
        ServiceUnavailableError: the settings name no model server.
    """
    if settings.model_server_url is None:
        raise ServiceUnavailableError("model server", "TIMESTEP_MODEL_SERVER_URL")
    return OpenAIChatCompletionsModel(
        model=name if name.startswith(LOCAL) else LOCAL + name, openai_client=_client(settings.model_server_url)
    )


def remote_model(name: str) -> Model:
    """A provider's model: no prefix or ``openai/`` is OpenAI, other prefixes as the SDK maps them."""
    return MultiProvider().get_model(name)


@functools.lru_cache(maxsize=4)
def _client(url: str) -> AsyncOpenAI:
    # One connection pool per process. A plain-HTTP server on loopback needs no TLS context (20 ms to
    # make), and generation on a small machine may take minutes.
    return AsyncOpenAI(
        base_url=f"{url.rstrip('/')}/v1",
        api_key="local",
        max_retries=2,
        timeout=Timeout(600, connect=5),
        http_client=DefaultAsyncHttpxClient(verify=url.startswith("https")),
    )
