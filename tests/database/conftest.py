"""The embedded PostgreSQL, for the tests of this folder."""

from tests.postgres import database, empty_server, postgres_url

__all__ = ["database", "empty_server", "postgres_url"]
