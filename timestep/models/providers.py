"""From a model's name to an Agents SDK ``Model``: the local model server, or the SDK's own providers."""

import difflib
import functools
from contextvars import ContextVar
from typing import Any

from agents import Model, MultiProvider, OpenAIChatCompletionsModel, UserError
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError, Timeout

from timestep.errors import NotFoundError, ServiceUnavailableError, UsageError
from timestep.models.routing import PREFIX, SERVED_HEADER
from timestep.settings import Settings

# Names of the versions that answered, noted here for whoever set a list; the Agents SDK drops them.
answered: ContextVar[list[str]] = ContextVar("answered")


def is_local(name: str, known: frozenset[str]) -> bool:
    """Whether the model server answers for a name: by prefix, as a known model, or as a file's path or URL."""
    return name.startswith((PREFIX, "/", "http://", "https://")) or name.partition("@")[0] in known


def local_model(name: str, settings: Settings) -> Model:
    """The model server's model of that name, such as ``local/assistant`` or ``local/assistant@3``.

    Raises:
        ServiceUnavailableError: the settings name no model server.
    """
    if settings.model_server_url is None:
        raise ServiceUnavailableError("model server", "TIMESTEP_MODEL_SERVER_URL")
    return OpenAIChatCompletionsModel(
        model=name if name.startswith(PREFIX) else PREFIX + name, openai_client=_client(settings.model_server_url)
    )


def remote_model(name: str, known: frozenset[str]) -> Model:
    """A provider's model: no prefix or ``openai/`` is OpenAI, other prefixes as the SDK maps them.

    Raises:
        NotFoundError: a prefix that the SDK doesn't know.
        UsageError: OpenAI's key is missing, and the name is no slip of a known one.
    """
    try:
        return MultiProvider().get_model(name)
    except UserError as error:
        raise NotFoundError("model", name, known) from error
    except OpenAIError as error:
        if difflib.get_close_matches(name, known):
            raise NotFoundError("model", name, known) from error
        raise UsageError(f"Model '{name}' is OpenAI's, and the service was started without OPENAI_API_KEY.") from error


async def declared_models(url: str) -> set[str]:
    """Names of the agents' models that the model server at ``url`` knows, without their prefix."""
    models = await _client(url).models.list()
    return {model.id.removeprefix(PREFIX) for model in models.data if model.id.startswith(PREFIX)}


@functools.lru_cache(maxsize=4)
def _client(url: str) -> AsyncOpenAI:
    # One connection pool per process. A plain-HTTP server on loopback needs no TLS context (20 ms to
    # make), and generation on a small machine may take minutes.
    return AsyncOpenAI(
        base_url=f"{url.rstrip('/')}/v1",
        api_key="local",
        max_retries=2,
        timeout=Timeout(600, connect=5),
        http_client=DefaultAsyncHttpxClient(verify=url.startswith("https"), event_hooks={"response": [_note]}),
    )


async def _note(response: Any) -> None:
    if SERVED_HEADER in response.headers:
        answered.get([]).append(response.headers[SERVED_HEADER])
