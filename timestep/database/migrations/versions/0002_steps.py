"""Steps: the lease, the units, the decisions of people, events, sessions' queues, run states put aside."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def _time(name: str, *, now: bool = False) -> sa.Column[object]:
    default = {"server_default": sa.func.now(), "nullable": False} if now else {"nullable": True}
    return sa.Column(name, sa.DateTime(timezone=True), **default)


def _text(*names: str, nullable: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=nullable) for name in names]


def _of_step(table: str) -> sa.Column[str]:
    step = sa.ForeignKey("steps.id", name=f"{table}_step_id_fkey", ondelete="CASCADE")
    return sa.Column("step_id", sa.String(), step, primary_key=True)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), primary_key=True)


def upgrade() -> None:
    op.create_table(
        "steps",
        _key("id"),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        *_text("holder", nullable=True),
        _time("heartbeat_at"),
        sa.Column("accept_changes", sa.Boolean(), server_default="false", nullable=False),
        _time("created_at", now=True),
    )
    op.create_table(
        "units",
        _of_step("units"),
        _key("position"),
        *_text("kind", "name", "fingerprint"),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("once", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("request", postgresql.JSON()),
        sa.Column("result", postgresql.JSON()),
        sa.Column("result_reference", postgresql.JSONB()),
        _time("started_at", now=True),
        _time("finished_at"),
    )
    op.create_table(
        "approvals",
        _of_step("approvals"),
        _key("position"),
        _key("kind"),
        *_text("call_id", "agent", "tool", "arguments", "digest"),
        sa.Column("status", sa.String(), server_default="pending", nullable=False),
        *_text("verdict", "text", nullable=True),
        sa.Column("always", sa.Boolean(), server_default="false", nullable=False),
        *_text("decided_by", nullable=True),
        _time("decided_at"),
        _time("consumed_at"),
        _time("deadline_at"),
        *_text("default_verdict", nullable=True),
        _time("created_at", now=True),
    )
    pending = sa.text("status = 'pending'")
    op.create_index("approvals_deadline_at_idx", "approvals", ["deadline_at"], postgresql_where=pending)
    op.create_table(
        "events",
        _key("step_id"),
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        *_text("type"),
        *_text("position", nullable=True),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        _time("created_at", now=True),
    )
    op.create_index("events_created_at_idx", "events", ["created_at"], postgresql_using="brin")
    op.create_table(
        "turns",
        _key("step_id"),
        *_text("session_id"),
        sa.Column("number", sa.BigInteger(), sa.Identity(), nullable=False),
        _time("created_at", now=True),
    )
    op.create_index("turns_session_id_number_idx", "turns", ["session_id", "number"])
    op.create_table(
        "run_states",
        _key("session_id"),
        *_text("agent", "version", "state"),
        _time("updated_at", now=True),
    )


def downgrade() -> None:
    for table in ("run_states", "turns", "events", "approvals", "units", "steps"):
        op.drop_table(table)
