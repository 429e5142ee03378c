"""What a suite judges: a service's URL, its key, the models to ask. Nothing here knows a suite."""

from dataclasses import dataclass, field

import httpx

from timestep.errors import ServiceUnavailableError, UsageError
from timestep.models.files import SCRIPTED


@dataclass(frozen=True)
class Target:
    """A running service. ``seconds`` and ``limit`` shorten what may take long; None is the suite's own length."""

    url: str
    model: str
    embedding_model: str
    api_key: str = field(default="none", repr=False)
    limit: int | None = None
    seconds: int | None = None

    @property
    def scripted(self) -> bool:
        """Whether the model answers by a script, and so everything must pass."""
        return self.model == SCRIPTED.name

    @property
    def api(self) -> str:
        """Base URL of the OpenAI API."""
        return f"{self.url}/v1"


def find(url: str, model: str | None, embedding_model: str, api_key: str | None) -> Target:
    """The service at ``url``; ``model`` None is the scripted one where it is served, else the default agent's.

    Raises:
        ServiceUnavailableError: nothing answers there.
        UsageError: it asks for another key.
    """
    url = url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=30, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL):
        raise ServiceUnavailableError("service", url) from None
    if answer.status_code in (401, 403):
        raise UsageError(f"The service at {url} wants a key that may do everything: --key KEY.")
    if answer.status_code != 200:
        raise UsageError(f"{url}/v1/models answered {answer.status_code}. Is a Timestep service there?")
    names = {listed["id"] for listed in answer.json()["data"]}
    model = model or (SCRIPTED.name if SCRIPTED.name in names else "local/assistant")
    return Target(url, model, embedding_model, api_key or "none")
