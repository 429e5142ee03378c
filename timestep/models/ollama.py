"""Ollama's models, local or in its cloud: the SDK's chat-completions model, at Ollama's OpenAI-compatible API."""

from agents import Model, ModelProvider, OpenAIChatCompletionsModel
from openai import AsyncOpenAI

from timestep.errors import UsageError
from timestep.models import endpoints
from timestep.settings import Settings


class OllamaModel(OpenAIChatCompletionsModel):
    """One model of Ollama's, such as ``OllamaModel("qwen3")`` or ``OllamaModel("gpt-oss:120b-cloud")``.

    ``host`` and ``api_key`` decide where it is asked, see :func:`timestep.models.endpoints.ollama`; they are not
    read from the environment here. ``openai_client`` is asked instead where one is given.
    """

    def __init__(
        self,
        model: str,
        openai_client: AsyncOpenAI | None = None,
        *,
        host: str | None = None,
        api_key: str | None = None,
        max_retries: int = 2,
    ) -> None:
        if openai_client is None:
            endpoint, model = endpoints.ollama(model, host, api_key)
            openai_client = endpoints.client(endpoint, max_retries)
        super().__init__(model=model, openai_client=openai_client)


class OllamaModelProvider(ModelProvider):
    """Ollama's models by name. ``host`` and ``api_key`` default to the settings' (OLLAMA_HOST, OLLAMA_API_KEY)."""

    def __init__(
        self,
        *,
        host: str | None = None,
        api_key: str | None = None,
        openai_client: AsyncOpenAI | None = None,
        max_retries: int = 2,
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings()
        secret = settings.ollama_api_key
        self._host = host or settings.ollama_host
        self._api_key = api_key or (secret.get_secret_value() if secret else None)
        self._client, self._max_retries = openai_client, max_retries

    def get_model(self, model_name: str | None) -> Model:
        """The model of that name. UsageError: no name; Ollama has no default model."""
        if not model_name:
            raise UsageError("Ollama has no default model. Name one: 'ollama/qwen3'.")
        return OllamaModel(
            model_name, self._client, host=self._host, api_key=self._api_key, max_retries=self._max_retries
        )
