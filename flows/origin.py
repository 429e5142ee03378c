"""Where a training starts: the agent's own model, or any local one for a line of versions that is no agent's."""

from typing import Any

from pydantic import BaseModel

from flows.support import Services
from timestep.agents.record.ledger import Begin, Ledger
from timestep.agents.record.units import fingerprint, unit
from timestep.errors import NotFoundError, UsageError
from timestep.models.files import SCRIPTED
from timestep.models.registry import ModelRegistry, ModelVersion
from timestep.models.routing import PREFIX, bases, is_file, taken_names


class Origin(BaseModel):
    """The base of the line, the version to start from (None: the base), and the version that the line serves now."""

    base: str
    start: ModelVersion | None
    served: int | None


async def origin(
    ledger: Ledger, registry: ModelRegistry, services: Services, name: str, model: str | None, own_line: bool
) -> Origin:
    """Where the training of ``name`` starts, as it was when the step first asked.

    Raises:
        UsageError: the agent's model is not local, or ``model`` is not what it may start from.
        NotFoundError: no such agent or model.
    """
    if own_line:
        # Recorded, since another run may promote before this one resumes.
        begin = Begin("training/origin", "training", "origin", fingerprint([name, model]))

        async def find() -> Any:
            return (await _of_line(registry, services, name, model)).model_dump(mode="json")

        found = Origin.model_validate(await unit(ledger, begin, find))
        await registry.declare(name, found.base)
        return found
    base = await _base(registry, services, name, model)
    await registry.declare(name, base)
    start = await _served(ledger, registry, name, model)
    return Origin(base=base, start=start, served=start.version if start else None)


async def _of_line(registry: ModelRegistry, services: Services, name: str, model: str | None) -> Origin:
    if name in services.registry.names():
        raise UsageError(f"'{name}' is an agent's name. Train the agent, as {PREFIX}{name}, or choose another name.")
    if name in taken_names(services.settings):
        raise UsageError(f"'{name}' is the name of a model that was not trained here. Choose another name.")
    if not model:
        raise UsageError(f"A line of versions of its own, '{name}', needs a model to start from.")
    start, base = await _start(registry, services, model)
    before = (await registry.names()).get(name, base)
    if before != base:
        raise UsageError(f"'{PREFIX}{name}' are versions of '{before}', not of '{base}'. Choose another name.")
    promoted = await registry.promoted(name)
    return Origin(base=base, start=start, served=promoted.version if promoted else None)


async def _start(registry: ModelRegistry, services: Services, model: str) -> tuple[ModelVersion | None, str]:
    """The version that a model's name means, and its base; None: the base itself."""
    name, at, version = model.removeprefix(PREFIX).partition("@")
    lines = await registry.names()
    known = {name: source for name, source in bases(services.settings).items() if source != SCRIPTED.name}
    if name in lines and not is_file(model) and model not in known:
        found = await registry.get(name, _number(name, version)) if at else await registry.promoted(name)
        return found, found.base if found else lines[name]
    if name in services.registry.names() and not at:  # an agent that nobody has trained yet
        return None, await _base(registry, services, name, None)
    bare = model.removeprefix(PREFIX)
    if is_file(model) or bare in known:
        return None, known.get(bare, bare)
    raise NotFoundError("model", model, [*(f"{PREFIX}{line}" for line in lines), *known])


async def _base(registry: ModelRegistry, services: Services, name: str, model: str | None) -> str:
    lines = {} if name in services.registry.names() else await registry.names()
    base = lines.get(name) or services.registry.base(name)
    if base is None:
        named = services.registry.get(name).model
        shown = named if isinstance(named, str) else type(named).__name__
        if shown.startswith(PREFIX):
            raise UsageError(f"Agent '{name}' is on another agent's model, '{shown}': train that agent instead.")
        raise UsageError(f"Agent '{name}' runs on '{shown}', which is not a local model: only local models can learn.")
    if model is not None and model.removeprefix(PREFIX).partition("@")[0] != name:
        raise UsageError(f"Training starts from the agent's own model, not from '{model}'. Say local/{name}@VERSION.")
    return base


async def _served(ledger: Ledger, registry: ModelRegistry, name: str, model: str | None) -> ModelVersion | None:
    """The version that training starts from; recorded, since another run may promote before this one resumes."""
    version = (model or "").partition("@")[2]

    async def call() -> Any:
        found = await registry.get(name, _number(name, version)) if version else await registry.promoted(name)
        return found and found.model_dump(mode="json")

    recorded = await unit(ledger, Begin("training/served", "training", "served version", fingerprint(model)), call)
    return None if recorded is None else ModelVersion.model_validate(recorded)


def _number(name: str, version: str) -> int:
    if not version.isdecimal():
        raise UsageError(f"No version '{version}'. Versions are numbers, as in {PREFIX}{name}@3.")
    return int(version)
