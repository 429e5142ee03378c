"""The tables of the database 'timestep'. A change here needs a migration beside it; a test compares the two."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    UniqueConstraint,
    func,
    text,
)
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
    # Its versions keep their numbers: a name never means other weights than it did.
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class ModelVersionRow(Base):
    """A trained version of a model; never changed once written, but for its deletion. ``file_size`` is in bytes."""

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
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class StepRow(Base):
    """The lease on a step: the attempt (a process) that may act for it, and when that last said that it lives.

    ``crashes`` counts the processes that died without having finished a unit since the one before.
    """

    __tablename__ = "steps"

    id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(server_default="0")
    crashes: Mapped[int] = mapped_column(server_default="0")
    holder: Mapped[str | None]
    heartbeat_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    accept_changes: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class UnitRow(Base):
    """A model call, a tool call or an epoch of a step: begun (``result`` is not there yet) or finished.

    ``fingerprint`` is of the request; ``once`` says that the call, cut in the middle, must not run again by itself.
    A result above a size is an object in storage, and ``result_reference`` says which. Requests and results are
    JSON as text, not JSONB, which would spell numbers anew, drop the order of keys and refuse NUL characters.
    """

    __tablename__ = "units"

    step_id: Mapped[str] = mapped_column(
        ForeignKey("steps.id", name="units_step_id_fkey", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    fingerprint: Mapped[str]
    attempt: Mapped[int]
    once: Mapped[bool] = mapped_column(server_default="false")
    request: Mapped[Any | None] = mapped_column(JSON)
    result: Mapped[Any | None] = mapped_column(JSON)
    result_reference: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class ApprovalRow(Base):
    """A call that waits for a person, and what the person decided; ``status`` is pending, decided or consumed.

    ``digest`` is of the tool and its arguments: a decision counts for that call and no other.
    """

    __tablename__ = "approvals"
    __table_args__ = (
        # Looked at every second, by every server.
        Index("approvals_deadline_at_idx", "deadline_at", postgresql_where=text("status = 'pending'")),
    )

    step_id: Mapped[str] = mapped_column(
        ForeignKey("steps.id", name="approvals_step_id_fkey", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    call_id: Mapped[str]
    agent: Mapped[str]
    tool: Mapped[str]
    arguments: Mapped[str]
    digest: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    verdict: Mapped[str | None]
    text: Mapped[str | None]
    always: Mapped[bool] = mapped_column(server_default="false")
    decided_by: Mapped[str | None]
    decided_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    consumed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    deadline_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    default_verdict: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class EventRow(Base):
    """Something that happened in a step, for those who watch it live; ``id`` grows within a step.

    The writer gives the ids, so that a write whose outcome it never learnt is repeated without being doubled.
    """

    __tablename__ = "events"
    __table_args__ = (Index("events_created_at_idx", "created_at", postgresql_using="brin"),)

    step_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    type: Mapped[str]
    position: Mapped[str | None]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class TurnRow(Base):
    """A step's place in the queue of its session; gone when the step has ended."""

    __tablename__ = "turns"
    __table_args__ = (Index("turns_session_id_number_idx", "session_id", "number"),)

    step_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str]
    number: Mapped[int] = mapped_column(BigInteger, Identity())
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class RunStateRow(Base):
    """The state of a run that a library's caller put aside, by session."""

    __tablename__ = "run_states"

    session_id: Mapped[str] = mapped_column(primary_key=True)
    agent: Mapped[str]
    version: Mapped[str]
    state: Mapped[str]  # JSON as it was written: text keeps what JSONB doesn't, such as the order of keys and NUL
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class FileRow(Base):
    """A file of a client: its bytes are an object in storage, under ``key``. ``id`` is 'file-…'.

    ``state`` is arriving, ready or leaving: only what is ready is seen, and only then are size and hash known. The row
    is there before the bytes and goes after them, so that no process that is killed leaves bytes nobody knows of.
    """

    __tablename__ = "files"
    __table_args__ = (
        Index("files_created_at_idx", "created_at", "id"),
        # Looked at by every server, now and then.
        Index("files_unready_idx", "state", postgresql_where=text("state <> 'ready'")),
        Index("files_expires_at_idx", "expires_at", postgresql_where=text("expires_at is not null")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="arriving")
    bytes: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str]
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class UploadRow(Base):
    """A file that comes in parts; ``status`` is pending, completed, cancelled or expired.

    ``part_ids`` are those that it was completed with. Durations are in seconds.
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    mime_type: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    file_id: Mapped[str | None]
    part_ids: Mapped[list[str] | None] = mapped_column(JSONB)
    file_expires_after: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class UploadPartRow(Base):
    """A part of an upload, stored whole under ``key``."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(
        ForeignKey("uploads.id", name="upload_parts_upload_id_fkey", ondelete="CASCADE"), index=True
    )
    bytes: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str]
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class ConversationRow(Base):
    """A conversation of the Responses API; ``id`` is 'conv_…'."""

    __tablename__ = "conversations"

    id: Mapped[str] = mapped_column(primary_key=True)
    # 'metadata' is taken by SQLAlchemy.
    notes: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class ConversationItemRow(Base):
    """An item of a conversation, as JSON text; ``number`` gives the order."""

    __tablename__ = "conversation_items"
    __table_args__ = (Index("conversation_items_number_idx", "conversation_id", "number"),)

    conversation_id: Mapped[str] = mapped_column(
        ForeignKey("conversations.id", name="conversation_items_conversation_id_fkey", ondelete="CASCADE"),
        primary_key=True,
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, Identity())
    item: Mapped[Any] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class ResponseRow(Base):
    """A stored response: what was asked, and what came where no flow run holds it. ``id`` is 'resp_…'.

    ``response`` is the whole object of one answered in the foreground; of one in the background it is empty, and the
    flow run of the same id says how it stands. ``items`` are its input items, those of earlier responses included.
    """

    __tablename__ = "responses"

    id: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[Any] = mapped_column(JSON)
    items: Mapped[Any] = mapped_column(JSON)
    response: Mapped[Any | None] = mapped_column(JSON)
    previous_response_id: Mapped[str | None]
    conversation_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class TaskRow(Base):
    """A task of the Agent Protocol: a session, whose steps are flow runs. The input is JSON."""

    __tablename__ = "tasks"
    __table_args__ = (Index("tasks_number_idx", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, Identity())
    input: Mapped[Any | None] = mapped_column(JSON)
    additional_input: Mapped[Any | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class TaskStepRow(Base):
    """Which task a flow run is a step of; ``id`` is the flow run's."""

    __tablename__ = "task_steps"

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(
        ForeignKey("tasks.id", name="task_steps_task_id_fkey", ondelete="CASCADE"), index=True
    )
    number: Mapped[int] = mapped_column(BigInteger, Identity())
    name: Mapped[str | None]
    input: Mapped[Any | None] = mapped_column(JSON)
    additional_input: Mapped[Any | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class ArtifactRow(Base):
    """A file of a task of the Agent Protocol, under ``key``; shown once it is ``stored``."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(
        ForeignKey("tasks.id", name="artifacts_task_id_fkey", ondelete="CASCADE"), index=True
    )
    step_id: Mapped[str | None]
    number: Mapped[int] = mapped_column(BigInteger, Identity())
    agent_created: Mapped[bool] = mapped_column(server_default="false")
    file_name: Mapped[str]
    relative_path: Mapped[str | None]
    key: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    stored: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class KeyRow(Base):
    """An API key: its hash, never the key. ``shown`` are its first characters, for people to tell keys apart."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    shown: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSONB)
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class RateRow(Base):
    """Requests that a key has left: a bucket that fills with time, shared by every server."""

    __tablename__ = "rates"

    key_id: Mapped[str] = mapped_column(primary_key=True)
    left: Mapped[float]
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
