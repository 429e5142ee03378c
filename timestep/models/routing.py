"""From a model's name to the file that is served for it now. Knows names and versions, not weights.

local/assistant     what the agent 'assistant' serves: its promoted version, else its declared base
local/assistant@3   version 3 of it
assistant           the same without the prefix
local/ftckpt_…      the checkpoint of a training's finished epoch, for as long as storage has it
smollm2-135m-…      a base model: a built-in one, or the one that the settings name; this goes before an agent's
/models/x.gguf      any GGUF file by its absolute path (~ is the user's home) or URL
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from storage.store import ObjectStore
from timestep.errors import NotFoundError, UsageError
from timestep.models.files import BUILT_IN, SCRIPTED, embedder_names, local_file, model_name, own_path
from timestep.models.registry import ModelRegistry, ModelVersion
from timestep.settings import Settings

FILES = "models"  # where trained models' files are in storage: of each run that trains under its id
CHECKPOINTS = "checkpoints"  # where the finished epochs of a run under way are, under the run's id
PREFIX = "local/"  # of a name that the model server answers for
# Says which version answered; clients of OpenAI's API that drop the response's own field can read it here.
SERVED_HEADER = "timestep-model"
_CHECKPOINT = re.compile(r"ftckpt_([0-9a-f]{32})([0-9]{4})")


def is_file(name: str) -> bool:
    """Whether a model's name is a file's absolute path or URL."""
    name = name.removeprefix(PREFIX)
    return name.startswith(("http://", "https://")) or (name.endswith(".gguf") and own_path(name).is_absolute())


def checkpoint_id(run_id: UUID, epoch: int) -> str:
    """The name of a finished epoch's checkpoint, behind the prefix."""
    return f"ftckpt_{run_id.hex}{epoch:04d}"


def bases(settings: Settings) -> dict[str, str]:
    """The base models by name, the built-in ones and the one that the settings name: its file's path or URL."""
    return {**{name: name for name in BUILT_IN}, model_name(settings.model): settings.model}


def taken_names(settings: Settings) -> set[str]:
    """Names that mean a model which nobody here trained: no line of versions may have one."""
    return {*bases(settings), *embedder_names(settings), SCRIPTED.name}


@dataclass(frozen=True)
class Served:
    """What answers: ``name`` in full ('local/assistant@3', or the base's name) and its checked file."""

    name: str
    path: Path


class ModelRouter:
    """Resolves names for one service; without a ``registry`` it knows base models only."""

    def __init__(self, settings: Settings, registry: ModelRegistry | None, store: ObjectStore | None) -> None:
        self._settings, self._registry, self._store = settings, registry, store

    async def names(self) -> list[str]:
        """Every name that can be asked for; versions behind the rest."""
        return [name for name, _ in await self.listed()]

    async def listed(self) -> list[tuple[str, datetime | None]]:
        """Every name, and when it was made, where that is known."""
        models = [f"{PREFIX}{name}" for name in await self._declared()]
        versions = await self._registry.versions() if self._registry else []
        return [
            *(
                (name, None)
                for name in dict.fromkeys([*models, *bases(self._settings), *embedder_names(self._settings)])
            ),
            *((f"{PREFIX}{made.name}@{made.version}", made.created_at) for made in versions),
        ]

    async def delete(self, model: str) -> None:
        """Delete a trained version, or a model with all of its versions, and their files.

        The files go last, with those of earlier deletions that were cut before their end.

        Raises:
            NotFoundError: no such model or version.
            UsageError: it is a base, which nobody here made.
            ConflictError: it is the version that its model serves.
        """
        try:
            await self._delete(model)
        finally:
            await self._sweep()

    async def _sweep(self) -> None:
        """Remove the files of deleted versions."""
        if self._registry and self._store and (unneeded := await self._registry.unneeded()):
            async for found in self._store.list(f"{FILES}/"):
                if found.key in unneeded:
                    with suppress(NotFoundError):  # another one was quicker
                        await self._store.delete(found.key)

    async def _delete(self, model: str) -> None:
        name, at, version = model.removeprefix(PREFIX).partition("@")
        if self._registry is None or name not in await self._declared() or self._untrained(model):
            if not at and self._untrained(name):
                raise UsageError(f"Model '{name}' was not trained here, and can't be deleted.")
            raise NotFoundError("model", model, await self.names())
        if at:
            await self._registry.delete(name, (await self._version(name, version)).version)
        else:
            await self._registry.delete_model(name)

    async def resolve(self, model: str) -> Served:
        """What serves ``model`` now. NotFoundError: no such model or version; ModelFileError: its file is bad."""
        if is_file(model):
            return await self._base(model.removeprefix(PREFIX))
        bare = model.removeprefix(PREFIX)
        if named := _CHECKPOINT.fullmatch(bare):
            return await self._checkpoint(bare, UUID(named[1]), int(named[2]))
        name, at, version = bare.partition("@")
        declared = await self._declared()
        if self._registry and name in declared and not self._untrained(model):
            if at:
                return await self._serve(await self._version(name, version))
            promoted = await self._registry.promoted(name)
            return await (self._serve(promoted) if promoted else self._base(declared[name]))
        if bare in (known := bases(self._settings)):
            return await self._base(known[bare])
        if not at and name in embedder_names(self._settings):
            raise UsageError(f"Model '{name}' makes embeddings, and can't be asked for anything else.")
        raise NotFoundError("model", model, await self.names())

    async def _version(self, name: str, version: str) -> ModelVersion:
        assert self._registry is not None
        if version.isdecimal() and len(version) < 10:  # the database's integers end there
            return await self._registry.get(name, int(version))
        known = [f"{PREFIX}{name}@{known.version}" for known in await self._registry.versions(name)]
        raise NotFoundError("model", f"{PREFIX}{name}@{version}", known)

    async def _serve(self, version: ModelVersion) -> Served:
        path = await local_file(version.file, self._settings, self._store)
        return Served(f"{PREFIX}{version.name}@{version.version}", path)

    async def _checkpoint(self, name: str, run_id: UUID, epoch: int) -> Served:
        file = await self._registry.checkpoint(str(run_id), epoch) if self._registry else None
        # The cache may still have what is no more in storage: then it is no model any more.
        if file is None or self._store is None or not await self._store.exists(file.key):
            raise NotFoundError("model", f"{PREFIX}{name}")
        return Served(f"{PREFIX}{name}", await local_file(file, self._settings, self._store))

    async def _base(self, source: str) -> Served:
        name = model_name(source) if source == self._settings.model else source
        if source == SCRIPTED.name:
            return Served(name, SCRIPTED)
        return Served(name, await local_file(source, self._settings, self._store))

    async def _declared(self) -> dict[str, str]:
        return await self._registry.names() if self._registry else {}

    def _untrained(self, model: str) -> bool:
        """Whether this is, to the letter, the name of a model that nobody here trained."""
        return model in bases(self._settings) or model in embedder_names(self._settings)
