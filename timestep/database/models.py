"""The tables of the database 'timestep'. A change here needs a migration beside it; a test compares the two."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKey, ForeignKeyConstraint, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Metadata of every table of ours."""


class ModelRow(Base):
    """A model that belongs to an agent, and the one version of it that is served."""

    __tablename__ = "models"
    __table_args__ = (
        # A promoted version exists, whatever else goes wrong. Both tables name the other: added after both.
        ForeignKeyConstraint(
            ["name", "promoted"],
            ["model_versions.name", "model_versions.version"],
            name="models_promoted_fkey",
            use_alter=True,
        ),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    base: Mapped[str]
    promoted: Mapped[int | None]


class ModelVersionRow(Base):
    """A trained version of a model; never changed once written. ``file_size`` is in bytes."""

    __tablename__ = "model_versions"
    __table_args__ = (UniqueConstraint("name", "origin", name="model_versions_name_origin_key"),)

    name: Mapped[str] = mapped_column(ForeignKey("models.name", name="model_versions_name_fkey"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    file_key: Mapped[str]
    file_sha256: Mapped[str]
    file_size: Mapped[int] = mapped_column(BigInteger)
    base: Mapped[str]
    origin: Mapped[str | None]
    evaluation: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
