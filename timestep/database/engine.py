"""The connection to PostgreSQL: one server, two databases on it, 'prefect' (Prefect's) and 'timestep' (ours)."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from timestep.errors import ConflictError, NotFoundError, ServiceUnavailableError, UsageError

PREFECT, TIMESTEP = "prefect", "timestep"
# How the same server is written; it is always spoken to by asyncpg.
_DRIVERS = {"postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"}
_NO_PRIVILEGE = "42501"
# How a server answers that is starting, ending, or full.
_AWAY = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.TooManyConnectionsError)
_LOST = (OSError, asyncpg.InterfaceError, *_AWAY)  # how a connection fails whose server is not there any more
CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0  # for one statement of a session: longer, and its connection is taken for lost
# Held while databases are created and tables migrated, so that processes starting together take turns.
_LOCK = text("select pg_advisory_xact_lock(7489271, 1)")


class Database:
    """A PostgreSQL server by URL. Connects on first use; close it with :meth:`close`.

    ``url`` is ``postgresql://user:password@host:port/database`` or ``postgresql:///database?host=/socket/folder``;
    its database, by default 'postgres', is used to create the other two.

    Raises:
        UsageError: the URL is none of PostgreSQL.
    """

    def __init__(self, url: str) -> None:
        self._url = _parse(url)

    @property
    def shown(self) -> str:
        """The URL for a message: no password, wherever the URL had it."""
        return str(self._url.difference_update_query(["password", "sslpassword"]))

    @property
    def prefect_url(self) -> str:
        """URL of Prefect's database, as its server takes it. Holds the password."""
        return self._of(PREFECT).render_as_string(hide_password=False)

    @property
    def timestep_url(self) -> str:
        """URL of our database. Holds the password."""
        return self._of(TIMESTEP).render_as_string(hide_password=False)

    @cached_property
    def engine(self) -> AsyncEngine:
        """The engine on our database; its pool belongs to the event loop that first used it."""
        options = {"command_timeout": COMMAND_SECONDS}
        engine = create_async_engine(self._of(TIMESTEP), pool_pre_ping=True, connect_args=options)
        event.listen(engine.sync_engine, "handle_error", self._name_away)
        return engine

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session in one transaction: committed at the end, rolled back on an error.

        Raises:
            ServiceUnavailableError: the server can't be reached, or went away.
        """
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            with self._reached():
                await session.connection()
            yield session
            await session.commit()

    async def connect(self, name: str = TIMESTEP, **options: Any) -> asyncpg.Connection:
        """A connection to our database outside the pool, the caller's to close; ``options`` are asyncpg's.

        For what needs one roundtrip a statement, or a connection of its own: each statement commits by itself.

        Raises:
            ServiceUnavailableError: the server can't be reached.
            NotFoundError: it has no database of this name.
            UsageError: it refuses this user.
        """
        url = self._of(name)
        (_, arguments) = url.get_dialect()().create_connect_args(url)
        arguments.pop("prepared_statement_cache_size", None)
        try:
            with self._reached():
                return await asyncpg.connect(**arguments, **options)
        except UsageError as error:
            if isinstance(error.__cause__, asyncpg.InvalidCatalogNameError):
                raise NotFoundError("database", name) from error
            raise

    async def revisions(self, name: str = TIMESTEP) -> set[str]:
        """The migrations that a database stands at: none where there is none yet. Raises as :meth:`connect`."""
        try:
            connection = await self.connect(name, timeout=CONNECT_SECONDS, command_timeout=COMMAND_SECONDS)
        except NotFoundError:
            return set()
        try:
            rows = await connection.fetch("select version_num from alembic_version")
        except asyncpg.UndefinedTableError:
            return set()
        except _LOST as error:
            raise ServiceUnavailableError("database", self.shown) from error
        finally:
            connection.terminate()
        return {row["version_num"] for row in rows}

    async def create_missing(self) -> None:
        """Creates the databases 'prefect' and 'timestep' where they are missing. Safe to do twice at once.

        Raises:
            ServiceUnavailableError: the server can't be reached.
            UsageError: the user may not create databases.
        """
        engine = create_async_engine(self._url.set(database=self._url.database or "postgres"), poolclass=NullPool)
        try:
            # The lock lives in a transaction of its own, since CREATE DATABASE can't run in one.
            async with self._connected(engine) as turn, self._connected(engine) as connection:
                await turn.execute(_LOCK)
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                there = set(await connection.scalars(text("select datname from pg_database")))
                for name in {PREFECT, TIMESTEP} - there:
                    await connection.execute(text(f'create database "{name}"'))
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _NO_PRIVILEGE:
                raise
            wanted = f"databases '{PREFECT}' and '{TIMESTEP}'"
            raise UsageError(f"The user of '{self._url}' may not create the {wanted}. Create them first.") from error
        finally:
            await engine.dispose()

    async def migrate(self) -> None:
        """Brings our tables up to date. Safe to repeat, and when several processes do it at once.

        Raises:
            ServiceUnavailableError: the server can't be reached.
            ConflictError: a newer Timestep has migrated the database.
        """
        engine = create_async_engine(self._of(TIMESTEP), poolclass=NullPool)  # a migration takes its time
        async with self._connected(engine) as connection, connection.begin():
            await connection.execute(_LOCK)
            await connection.run_sync(_upgrade)

    async def close(self) -> None:
        """Closes the connections."""
        if "engine" in self.__dict__:
            await self.engine.dispose()

    def _of(self, database: str) -> URL:
        return self._url.set(database=database)

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        connection = engine.connect()
        with self._reached():
            await connection.start()
        try:
            yield connection
        finally:
            await connection.close()

    def _name_away(self, context: ExceptionContext) -> ServiceUnavailableError | None:
        """The error of a statement whose connection is lost, or whose server ends, is full or silent."""
        error = context.original_exception
        # The latter as asyncpg raised it; a timeout is an OSError.
        away = context.is_disconnect or isinstance(error, OSError) or isinstance(error.__cause__, _AWAY)
        # A cancelled statement loses its connection too, which says nothing about the server.
        if not away or context.is_pre_ping or not isinstance(error, Exception):
            return None
        context.is_disconnect = True
        return ServiceUnavailableError("database", self.shown)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Names the server that a connection could not be made to, and why where it answered."""
        try:
            yield
        except (OSError, *_AWAY) as error:
            raise ServiceUnavailableError("database", self.shown) from error
        except asyncpg.PostgresError as error:
            raise UsageError(f"Database '{self.shown}' refuses: {error}") from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in _DRIVERS:
        shown = url.rpartition("@")[2]
        raise UsageError(f"'{shown}' is no PostgreSQL URL. Example: postgresql://user:password@127.0.0.1:5432")
    query = {"ssl" if name == "sslmode" else name: value for name, value in parsed.query.items()}
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def _upgrade(connection: Connection) -> None:
    # Alembic rather than a list of DDL: the tables of the issues to come are checked against the models by it.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConflictError(f"The database is newer than this Timestep ({error}). Upgrade Timestep.") from error
