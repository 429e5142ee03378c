"""Models, their versions, and which version is promoted."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("promoted", sa.Integer(), nullable=True),
    )
    op.create_table(
        "model_versions",
        sa.Column("name", sa.String(), sa.ForeignKey("models.name", name="model_versions_name_fkey"), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("file_key", sa.String(), nullable=False),
        sa.Column("file_sha256", sa.String(), nullable=False),
        sa.Column("file_size", sa.BigInteger(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=True),
        sa.Column("evaluation", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.UniqueConstraint("name", "origin", name="model_versions_name_origin_key"),
    )
    op.create_foreign_key("models_promoted_fkey", "models", "model_versions", ["name", "promoted"], ["name", "version"])


def downgrade() -> None:
    op.drop_constraint("models_promoted_fkey", "models")
    op.drop_table("model_versions")
    op.drop_table("models")
