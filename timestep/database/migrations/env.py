"""Alembic's entry point: migrates the connection that Database.migrate holds, inside its transaction."""

from alembic import context

from timestep.database.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
