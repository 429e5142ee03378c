"""From an agent to the model that it thinks with in the service: its own local one, or a provider's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from agents import Agent, Model, ModelResponse, ModelRetryAdvice
from agents.items import TResponseStreamEvent
from agents.retry import ModelRetryAdviceRequest

from timestep.agents.registry import AgentRegistry
from timestep.database.engine import Database
from timestep.errors import ServiceUnavailableError
from timestep.models import endpoints
from timestep.models.providers import declared_models, is_local, served_model
from timestep.models.registry import ModelRegistry
from timestep.models.routing import PREFIX, bases
from timestep.settings import Settings


class ModelResolver:
    """Finds agents' models; ``model``, if given, is that of every agent."""

    def __init__(self, settings: Settings, registry: AgentRegistry, database: Database, model: str | None) -> None:
        self._settings, self._registry, self._database, self._model = settings, registry, database, model
        self._known = frozenset([*registry.names(), *bases(settings)])
        self._declaring = asyncio.Lock()
        self._declared = False

    def __call__(self, agent: Agent[Any]) -> tuple[str, Model]:
        """The model and its name in full.

        Raises:
            NotFoundError: no such model; the message names the nearest.
            UsageError: a provider's key or package is missing.
        """
        model = self._model or agent.model
        named = self._model is None and agent.name in self._registry.names()
        # An agent that brings its own object is another's namesake.
        if named and not isinstance(model, Model) and self._registry.base(agent.name) is not None:
            # A local model belongs to its agent: what it serves now, on whatever base it was declared with.
            model = PREFIX + agent.name
        if model is None:
            model = PREFIX + self._settings.model
        if not isinstance(model, str):
            return type(model).__name__, model
        # Retries are the step's own, within the unit.
        name, found = served_model(model, self._known, self._settings, max_retries=0)
        return name, LocalModel(found, self._declare) if is_local(model, self._known) else found

    async def _declare(self) -> None:
        """Give agents that were added to a file after the service's start their own models, once."""
        async with self._declaring:
            if self._declared:
                return
            bases = {name: base for name in self._registry.names() if (base := self._registry.base(name)) is not None}
            for name in set(bases) - await declared_models(endpoints.model_server(self._settings)):
                await ModelRegistry(self._database).declare(name, bases[name])
            self._declared = True


class LocalModel(Model):
    """A model of the model server, which is told of new agents before the first real call: a replay needs no server."""

    def __init__(self, model: Model, declare: Callable[[], Awaitable[None]]) -> None:
        self._model, self._declare = model, declare

    async def get_response(self, *arguments: Any, **named: Any) -> ModelResponse:
        await self._ready()
        return await self._model.get_response(*arguments, **named)

    async def stream_response(self, *arguments: Any, **named: Any) -> AsyncIterator[TResponseStreamEvent]:
        await self._ready()
        async for event in self._model.stream_response(*arguments, **named):
            yield event

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        return self._model.get_retry_advice(request)

    async def close(self) -> None:
        await self._model.close()

    async def _ready(self) -> None:
        with suppress(ServiceUnavailableError):  # the call itself says it, in a way that is tried again
            await self._declare()
