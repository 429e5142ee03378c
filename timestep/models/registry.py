"""The model registry: which versions an agent's model has, and which one is served. Rows in our database.

The weights are objects in storage; a version holds the reference.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, func, select, update
from sqlalchemy.dialects.postgresql import insert

from storage.references import Reference
from timestep.database.engine import Database
from timestep.database.models import ModelRow, ModelVersionRow, UnitRow
from timestep.errors import ConflictError, NotFoundError

EPOCH = "training/epoch-"  # before the number of an epoch, among the units of a run that trains


class ModelVersion(BaseModel):
    """A trained version of an agent's model: what ``local/<name>@<version>`` serves."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Name of the agent that the model belongs to.")
    version: int = Field(ge=1, description="Counts up from 1.")
    file: Reference = Field(description="The GGUF file in storage.")
    base: str = Field(description="Model it was first trained from.")
    origin: str | None = Field(None, description="Id of the flow run that trained it.")
    evaluation: dict[str, Any] = Field(description="What the evaluation measured.")
    created_at: datetime


class ModelRegistry:
    """Models by the name of the agent that owns them. A version never changes; only what is promoted moves."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def declare(self, name: str, base: str) -> None:
        """There is a model ``name``, and until a version is promoted it serves ``base``. Again changes the base."""
        row = insert(ModelRow).values(name=name, base=base)
        async with self._database.session() as session:
            await session.execute(
                row.on_conflict_do_update(index_elements=["name"], set_={"base": base, "deleted_at": None})
            )

    async def register(
        self, name: str, file: Reference, base: str, origin: str | None, evaluation: dict[str, Any]
    ) -> ModelVersion:
        """A new version of ``name``. The same ``origin`` again (a resumed run) returns the version it made before."""
        async with self._database.session() as session:
            await session.execute(insert(ModelRow).values(name=name, base=base).on_conflict_do_nothing())
            # The row's lock makes registrations of one model take turns: versions count up without gaps.
            row_of_model = await session.scalar(select(ModelRow).where(ModelRow.name == name).with_for_update())
            assert row_of_model is not None
            row_of_model.deleted_at = None
            of_model = select(ModelVersionRow).where(ModelVersionRow.name == name)
            made = origin and await session.scalar(of_model.where(ModelVersionRow.origin == origin))
            if made:
                return _version(made)
            last = await session.scalar(select(func.max(ModelVersionRow.version)).where(ModelVersionRow.name == name))
            row = ModelVersionRow(
                name=name,
                version=(last or 0) + 1,
                file_key=file.key,
                file_sha256=file.sha256,
                file_size=file.size,
                base=base,
                origin=origin,
                evaluation=evaluation,
            )
            session.add(row)
            await session.flush()
            await session.refresh(row, ["created_at"])
            return _version(row)

    async def promote(self, name: str, version: int, instead_of: int | Literal["any"] | None = "any") -> bool:
        """``name`` serves ``version`` from now on, if it served ``instead_of`` (None: its base); says whether it does.

        A compare-and-swap of one row: of two that promote instead of the same version, one does. NotFoundError
        where there is no such ``version``.
        """
        change = update(ModelRow).where(ModelRow.name == name)
        if instead_of != "any":
            change = change.where(ModelRow.promoted.is_not_distinct_from(instead_of))
        async with self._database.session() as session:
            # The model's row is locked first, as where versions are deleted: nobody deletes this one meanwhile.
            await session.execute(select(ModelRow.name).where(ModelRow.name == name).with_for_update())
            if await session.scalar(_there(name, version)):
                changed = await session.scalar(change.values(promoted=version).returning(ModelRow.name))
                return changed is not None
        raise await self._absent(name, version)

    async def promoted(self, name: str) -> ModelVersion | None:
        """The version that ``name`` serves; None while that is its base, and for a model nobody declared."""
        served = _there().join(
            ModelRow, (ModelRow.name == ModelVersionRow.name) & (ModelRow.promoted == ModelVersionRow.version)
        )
        async with self._database.session() as session:
            row = await session.scalar(served.where(ModelRow.name == name))
        return _version(row) if row else None

    async def get(self, name: str, version: int) -> ModelVersion:
        """One version. NotFoundError where there is none."""
        async with self._database.session() as session:
            row = await session.scalar(_there(name, version))
        if row is None:
            raise await self._absent(name, version)
        return _version(row)

    async def versions(self, name: str | None = None) -> list[ModelVersion]:
        """Every version of ``name``, or of all models, oldest first."""
        async with self._database.session() as session:
            rows = await session.scalars(_there(name).order_by(ModelVersionRow.name, ModelVersionRow.version))
            return [_version(row) for row in rows]

    async def names(self) -> dict[str, str]:
        """Every model, with its base."""
        async with self._database.session() as session:
            known = select(ModelRow.name, ModelRow.base).where(ModelRow.deleted_at.is_(None))
            return {row.name: row.base for row in await session.execute(known.order_by(ModelRow.name))}

    async def delete(self, name: str, version: int) -> None:
        """There is no such version any more, and never will be one of its number. Its file stays: see :meth:`unneeded`.

        Raises:
            NotFoundError: there is no such version.
            ConflictError: it is the promoted one.
        """
        async with self._database.session() as session:
            model = await session.scalar(select(ModelRow).where(ModelRow.name == name).with_for_update())
            row = await session.scalar(_there(name, version).with_for_update())
            if model and row and model.promoted == version:
                raise ConflictError(
                    f"Version '{name}@{version}' is the one that '{name}' serves. Promote another first."
                )
            if row:
                row.deleted_at = func.now()
                return
        raise await self._absent(name, version)

    async def delete_model(self, name: str) -> None:
        """There is no model ``name`` any more, until it is declared anew or trained. Files as of :meth:`delete`.

        Raises:
            NotFoundError: there is no such model.
        """
        async with self._database.session() as session:
            known = select(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None))
            if model := await session.scalar(known.with_for_update()):
                model.promoted, model.deleted_at = None, func.now()
                for row in await session.scalars(_there(name).with_for_update()):
                    row.deleted_at = func.now()
                return
        raise NotFoundError("model", name, await self.names())

    async def unneeded(self) -> set[str]:
        """Keys of the files of deleted versions, but of those that another version has too: whatever is still there."""
        deleted = select(ModelVersionRow.file_key).where(ModelVersionRow.deleted_at.is_not(None))
        needed = select(ModelVersionRow.file_key).where(ModelVersionRow.deleted_at.is_(None))
        async with self._database.session() as session:
            return set(await session.scalars(deleted.where(ModelVersionRow.file_key.not_in(needed))))

    async def checkpoint(self, origin: str, epoch: int) -> Reference | None:
        """Of a run's finished epoch; storage has those before the last until the run has succeeded."""
        async with self._database.session() as session:
            unit = await session.get(UnitRow, (origin, f"{EPOCH}{epoch}"))
        return Reference.model_validate(unit.result["checkpoint"]) if unit is not None and unit.result else None

    async def _absent(self, name: str, version: int) -> NotFoundError:
        names = await self.names()
        if name not in names:
            return NotFoundError("model", name, names)
        return NotFoundError(
            "model", f"{name}@{version}", [f"{name}@{made.version}" for made in await self.versions(name)]
        )


def _there(name: str | None = None, version: int | None = None) -> Select[tuple[ModelVersionRow]]:
    """Versions that are not deleted."""
    found = select(ModelVersionRow).where(ModelVersionRow.deleted_at.is_(None))
    if name is not None:
        found = found.where(ModelVersionRow.name == name)
    return found if version is None else found.where(ModelVersionRow.version == version)


def _version(row: ModelVersionRow) -> ModelVersion:
    return ModelVersion(
        name=row.name,
        version=row.version,
        file=Reference(key=row.file_key, sha256=row.file_sha256, size=row.file_size),
        base=row.base,
        origin=row.origin,
        evaluation=row.evaluation,
        created_at=row.created_at,
    )
