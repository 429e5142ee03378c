"""The API's: files, uploads, responses, conversations, tasks of the Agent Protocol, keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def _time(name: str, *, now: bool = False, nullable: bool = True) -> sa.Column[object]:
    default = {"server_default": sa.func.now(), "nullable": False} if now else {"nullable": nullable}
    return sa.Column(name, sa.DateTime(timezone=True), **default)


def _text(*names: str, nullable: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=nullable) for name in names]


def _json(*names: str, nullable: bool = True) -> list[sa.Column[object]]:
    return [sa.Column(name, postgresql.JSON(), nullable=nullable) for name in names]


def _key(name: str = "id") -> sa.Column[str]:
    return sa.Column(name, sa.String(), primary_key=True)


def _size() -> sa.Column[int]:
    return sa.Column("bytes", sa.BigInteger(), nullable=False)


def _number() -> sa.Column[int]:
    return sa.Column("number", sa.BigInteger(), sa.Identity(), nullable=False)


def _of(parent: str, table: str, *, primary: bool = False) -> sa.Column[str]:
    name = f"{parent.removesuffix('s')}_id"
    foreign = sa.ForeignKey(f"{parent}.id", name=f"{table}_{name}_fkey", ondelete="CASCADE")
    return sa.Column(name, sa.String(), foreign, primary_key=primary, nullable=False)


def _files() -> None:
    op.create_table(
        "files",
        _key(),
        *_text("filename", "purpose"),
        sa.Column("state", sa.String(), server_default="arriving", nullable=False),
        _size(),
        *_text("key", "sha256"),
        _time("created_at", now=True),
        _time("expires_at"),
    )
    op.create_index("files_created_at_idx", "files", ["created_at", "id"])
    op.create_index("files_unready_idx", "files", ["state"], postgresql_where=sa.text("state <> 'ready'"))
    op.create_index("files_expires_at_idx", "files", ["expires_at"], postgresql_where=sa.text("expires_at is not null"))
    op.create_table(
        "uploads",
        _key(),
        *_text("filename", "purpose"),
        _size(),
        *_text("mime_type"),
        sa.Column("status", sa.String(), server_default="pending", nullable=False),
        *_text("file_id", nullable=True),
        sa.Column("part_ids", postgresql.JSONB()),
        sa.Column("file_expires_after", sa.BigInteger()),
        _time("created_at", now=True),
        _time("expires_at", nullable=False),
    )
    op.create_table(
        "upload_parts",
        _key(),
        _of("uploads", "upload_parts"),
        _size(),
        *_text("key", "sha256"),
        _time("created_at", now=True),
    )
    op.create_index("ix_upload_parts_upload_id", "upload_parts", ["upload_id"])


def _responses() -> None:
    op.create_table(
        "conversations",
        _key(),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        _time("created_at", now=True),
    )
    op.create_table(
        "conversation_items",
        _of("conversations", "conversation_items", primary=True),
        _key(),
        _number(),
        *_json("item", nullable=False),
        _time("created_at", now=True),
    )
    op.create_index("conversation_items_number_idx", "conversation_items", ["conversation_id", "number"])
    op.create_table(
        "responses",
        _key(),
        *_json("request", "items", nullable=False),
        *_json("response"),
        *_text("previous_response_id", "conversation_id", nullable=True),
        _time("created_at", now=True),
    )


def _tasks() -> None:
    op.create_table("tasks", _key(), _number(), *_json("input", "additional_input"), _time("created_at", now=True))
    op.create_index("tasks_number_idx", "tasks", ["number"])
    op.create_table(
        "task_steps",
        _key(),
        _of("tasks", "task_steps"),
        _number(),
        *_text("name", nullable=True),
        *_json("input", "additional_input"),
        _time("created_at", now=True),
    )
    op.create_index("ix_task_steps_task_id", "task_steps", ["task_id"])
    op.create_table(
        "artifacts",
        _key(),
        _of("tasks", "artifacts"),
        *_text("step_id", nullable=True),
        _number(),
        sa.Column("agent_created", sa.Boolean(), server_default="false", nullable=False),
        *_text("file_name"),
        *_text("relative_path", nullable=True),
        *_text("key"),
        _size(),
        sa.Column("stored", sa.Boolean(), server_default="false", nullable=False),
        _time("created_at", now=True),
    )
    op.create_index("ix_artifacts_task_id", "artifacts", ["task_id"])


def _keys() -> None:
    op.create_table(
        "api_keys",
        _key(),
        *_text("name"),
        sa.Column("hash", sa.String(), nullable=False, unique=True),
        *_text("shown"),
        sa.Column("scopes", postgresql.JSONB(), nullable=False),
        sa.Column("requests_per_minute", sa.Integer()),
        _time("created_at", now=True),
        _time("revoked_at"),
    )
    op.create_table("rates", _key("key_id"), sa.Column("left", sa.Float(), nullable=False), _time("at", now=True))


def _models() -> None:
    for table in ("models", "model_versions"):
        op.add_column(table, _time("deleted_at"))


def upgrade() -> None:
    _models()
    _files()
    _responses()
    _tasks()
    _keys()
