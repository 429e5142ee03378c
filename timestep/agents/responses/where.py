"""Who answers for a model's name: what the model server lists wins, then providers' prefixes count."""

from timestep.models import endpoints
from timestep.models.endpoints import Endpoint
from timestep.models.routing import PREFIX
from timestep.settings import Settings


async def answering(model: str, settings: Settings, *, of_step: bool = False) -> tuple[Endpoint, str]:
    """The server that is asked, and the model's name there. A name that nobody has is for the model server to refuse.

    Raises:
        ServiceUnavailableError: the model server doesn't answer.
        UsageError: a provider's key is missing.
    """
    from timestep.models.providers import listed_models  # the Agents SDK: a second to import

    server = endpoints.model_server(settings, of_step=of_step)
    provider = None if model.startswith(PREFIX) else endpoints.provider(model, settings)
    if provider is not None:
        if settings.model_server_url is None:
            return provider
        listed = {name.removeprefix(PREFIX) for name in await listed_models(server)}
        if model.partition("@")[0] not in listed:
            return provider
    return server, model
