"""From a model's name to an Agents SDK ``Model``, over the SDK's own providers.

In the library (:class:`MultiModelProvider`) a name without a prefix is OpenAI's. In the service (:func:`served_model`)
a name that its model server lists is the service's own; other models have a prefix, and the rest there is not.
"""

import re
from typing import Any

from agents import Model, ModelProvider, MultiProvider, OpenAIChatCompletionsModel, OpenAIProvider
from agents.models.multi_provider import MultiProviderMap
from openai import APIError, OpenAIError

from timestep.errors import NotFoundError, ServiceUnavailableError, UsageError
from timestep.models import endpoints
from timestep.models.endpoints import Endpoint
from timestep.models.endpoints import answered as answered  # where steps look for it
from timestep.models.ollama import OllamaModelProvider
from timestep.models.routing import PREFIX
from timestep.settings import Settings

# Prefixes that the SDK knows by itself.
SDK_PREFIXES = ("openai", "litellm", "any-llm")


class MultiModelProviderMap(MultiProviderMap):
    """The SDK's map from prefix to provider, begun with ``ollama/``, ``local/`` and the configured servers."""

    def __init__(self, settings: Settings | None = None, *, max_retries: int = 2) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        settings = settings or Settings()
        self.add_provider("ollama", OllamaModelProvider(settings=settings, max_retries=max_retries))
        self.add_provider("local", EndpointProvider(endpoints.model_server(settings), PREFIX, max_retries))
        for prefix, endpoint in endpoints.configured(settings).items():
            self.add_provider(prefix, EndpointProvider(endpoint, max_retries=max_retries))


class EndpointProvider(ModelProvider):
    """Models of one OpenAI-compatible server; ``prefix`` is put before the names that it is asked for."""

    def __init__(self, endpoint: Endpoint, prefix: str = "", max_retries: int = 2) -> None:
        self._endpoint, self._prefix, self._max_retries = endpoint, prefix, max_retries

    def get_model(self, model_name: str | None) -> Model:
        """The model of that name. UsageError: no name; the server's default is not known."""
        if not model_name:
            raise UsageError(f"A model at '{self._endpoint.base_url}' needs a name. Write 'PREFIX/NAME'.")
        client = endpoints.client(self._endpoint, self._max_retries)
        return OpenAIProvider(openai_client=client, use_responses=False).get_model(self._prefix + model_name)


class MultiModelProvider(MultiProvider):
    """The SDK's ``MultiProvider`` with our prefixes. Takes its options, such as ``openai_api_key=``.

    No prefix or ``openai/`` is OpenAI; ``ollama/`` Ollama, local or in its cloud; ``local/NAME[@version]`` a model of
    the running service; ``litellm/`` whatever LiteLLM knows (``pip install timestep[litellm]``); and each configured
    prefix its server. What ``provider_map`` has goes before all of these.
    """

    def __init__(
        self,
        *,
        provider_map: MultiProviderMap | None = None,
        settings: Settings | None = None,
        max_retries: int = 2,
        **options: Any,
    ) -> None:
        known = MultiModelProviderMap(settings, max_retries=max_retries)
        for prefix, provider in (provider_map.get_mapping() if provider_map else {}).items():
            known.add_provider(prefix, provider)
        super().__init__(provider_map=known, **options)

    @property
    def prefixes(self) -> set[str]:
        """Every prefix that means something here."""
        return {*SDK_PREFIXES, *(self.provider_map.get_mapping() if self.provider_map else ())}

    def get_model(self, model_name: str | None) -> Model:
        """The model of that name.

        Raises:
            NotFoundError: no such prefix.
            UsageError: OpenAI's key is missing, or the package that a prefix needs.
        """
        prefix, slash, _ = (model_name or "").partition("/")
        if slash and prefix not in self.prefixes and self._unknown_prefix_mode == "error":
            raise NotFoundError("model", str(model_name), [f"{name}/…" for name in self.prefixes])
        try:
            return super().get_model(model_name)
        except OpenAIError as error:
            raise UsageError(f"Model '{model_name}' is OpenAI's, and there is no key: set OPENAI_API_KEY.") from error
        except ImportError as error:
            extra = f"timestep[{prefix}]" if prefix == "litellm" else f"openai-agents[{prefix}]"
            raise UsageError(f"Model '{model_name}' needs a package: pip install '{extra}'.") from error


def is_local(name: str, known: frozenset[str]) -> bool:
    """Whether the model server answers for a name: by prefix, as a known model, or as a file's path or URL."""
    return name.startswith((PREFIX, "/", "http://", "https://")) or name.partition("@")[0] in known


def local_model(name: str, settings: Settings, max_retries: int = 2) -> Model:
    """The model server's model of that name, such as ``local/assistant`` or ``local/assistant@3``.

    Raises:
        UsageError: the settings name no model server.
    """
    if settings.model_server_url is None:
        raise UsageError(
            f"Model '{name}' is one of the service's own, and there is no model server (TIMESTEP_MODEL_SERVER_URL). "
            "Name a provider's model, or start a service: timestep up"
        )
    return OpenAIChatCompletionsModel(
        model=name if name.startswith(PREFIX) else PREFIX + name,
        openai_client=endpoints.client(endpoints.model_server(settings, of_step=True), max_retries),
    )


def remote_model(name: str, known: frozenset[str], settings: Settings | None = None, max_retries: int = 2) -> Model:
    """A provider's model, by its prefix.

    Raises:
        NotFoundError: no prefix, or none that there is; the message names the nearest of the ``known``.
        UsageError: OpenAI's key is missing, or a package.
    """
    provider = MultiModelProvider(settings=settings, max_retries=max_retries)
    prefix, slash, _ = name.partition("/")
    if not slash or prefix not in provider.prefixes:
        openai = {f"openai/{name}"} if re.match(r"(gpt|chatgpt|o\d)", name) else set()
        raise NotFoundError("model", name, {*known, *openai, *(f"{prefix}/…" for prefix in provider.prefixes)})
    return provider.get_model(name)


def served_model(name: str, listed: frozenset[str], settings: Settings, max_retries: int = 2) -> tuple[str, Model]:
    """What a model's name means in the service, and its name in full.

    A name that the model server lists (``listed``, without ``local/``) is the service's own, then prefixes count.
    Raises as :func:`local_model` and :func:`remote_model`.
    """
    if is_local(name, listed):
        return PREFIX + name.removeprefix(PREFIX), local_model(name, settings, max_retries)
    return name, remote_model(name, listed, settings, max_retries)


async def listed_models(server: Endpoint) -> list[str]:
    """Names that the model server lists, in full.

    Raises:
        ServiceUnavailableError: it doesn't answer, or not with a list.
    """
    try:
        models = await endpoints.client(server).models.list()
    except APIError as error:
        raise ServiceUnavailableError("model server", server.base_url.removesuffix("/v1")) from error
    return [model.id for model in models.data]


async def declared_models(server: Endpoint) -> set[str]:
    """Names of the agents' models that the model server knows, without their prefix."""
    return {name.removeprefix(PREFIX) for name in await listed_models(server) if name.startswith(PREFIX)}
