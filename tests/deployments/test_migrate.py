"""The jobs that make, migrate and await a service's databases, on a real PostgreSQL."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from deployments import migrate
from deployments.migrate import Standing, folder_of, main, revisions
from tests.conftest import ROOT, environment
from timestep.database.engine import PREFECT, TIMESTEP, Database
from timestep.errors import UsageError
from timestep.keys import Keys, Scope

KEY = "ts-" + "k" * 40
Done = tuple[int, str, str]


@pytest.fixture
def role(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The role within this process: its exit code, and what it said."""

    def role(url: str, *arguments: str) -> Done:
        monkeypatch.setenv("TIMESTEP_DATABASE_URL", url)
        code = main(arguments)
        return (code, *capsys.readouterr())

    return role


def on(url: str, name: str, *statements: str) -> list[Any]:
    async def execute() -> list[Any]:
        connection = await asyncpg.connect(url, database=name)
        found = [row for statement in statements for row in await connection.fetch(statement)]
        await connection.close()
        return found

    return asyncio.run(execute())


def at(url: str, name: str, *revision: str) -> None:
    """Have a database stand at these migrations, without their tables."""
    rows = [f"insert into alembic_version values ('{one}')" for one in revision]
    table = "create table if not exists alembic_version (version_num text)"
    on(url, name, table, "delete from alembic_version", *rows)


def as_user(url: str, user: str) -> str:
    return make_url(url).set(username=user).render_as_string(hide_password=False)


def keys(url: str, use: Callable[[Keys], Awaitable[Any]]) -> Any:
    async def used() -> Any:
        database = Database(url)
        try:
            return await use(Keys(database))
        finally:
            await database.close()

    return asyncio.run(used())


def test_two_at_once_make_and_migrate_both_databases_and_take_the_first_key_in_once(
    empty_server: str, role: Callable[..., Done]
) -> None:
    command = [sys.executable, "-m", "deployments.migrate"]
    variables = {**environment(), "TIMESTEP_DATABASE_URL": empty_server, "TIMESTEP_FIRST_API_KEY": f"{KEY}\n"}
    started = [
        subprocess.Popen(command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=540) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert sum("taken in" in out for out, _ in said) == 1
    assert KEY not in str(said)
    assert role(empty_server, "--wait")[0] == 0
    assert {name: asyncio.run(Database(empty_server).revisions(name)) for name in (PREFECT, TIMESTEP)} == {
        name: revisions(folder_of(name))[0] for name in (PREFECT, TIMESTEP)
    }
    assert on(empty_server, PREFECT, "select count(*) from flow_run")[0][0] == 0
    # What servers that start together would write, and fail.
    assert on(empty_server, PREFECT, "select slug from block_type where slug = 'timestep-storage'")

    row = keys(empty_server, lambda them: them.find(KEY))
    assert (row.name, row.scopes) == ("first", ["admin"])
    keys(empty_server, lambda them: them.revoke("first"))
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "taken in" in done.stdout) == (0, False), done.stderr
    assert keys(empty_server, lambda them: them.find(KEY)) is None


@pytest.mark.parametrize("name", [PREFECT, TIMESTEP])
def test_migrations_are_read_as_alembic_reads_them(name: str) -> None:
    folder = folder_of(name)
    script = ScriptDirectory(str(folder.parent), version_locations=[str(folder)])
    newest, known = revisions(folder)
    assert newest == set(script.get_heads())
    assert known == {found.revision for found in script.walk_revisions()}


def test_whoever_waits_changes_nothing_and_sees_what_others_do(empty_server: str, role: Callable[..., Done]) -> None:
    def make() -> None:
        time.sleep(1.5)
        on(empty_server, "postgres", "create database timestep")
        time.sleep(1.5)
        on(empty_server, "postgres", "create database prefect")
        at(empty_server, TIMESTEP, "0001")
        time.sleep(1.5)
        for name in (TIMESTEP, PREFECT):
            at(empty_server, name, *revisions(folder_of(name))[0])

    begun = time.monotonic()
    maker = threading.Thread(target=make)
    maker.start()
    code, out, err = role(empty_server, "--wait")
    maker.join()
    assert (code, err) == (0, "")
    assert time.monotonic() - begun > 4.5
    assert out.count("waiting for that") <= 2
    assert f"Database 'timestep' {Standing.READY}." in out
    tables = "select tablename from pg_tables where schemaname = 'public'"
    assert [row[0] for row in on(empty_server, TIMESTEP, tables)] == ["alembic_version"]


def test_newer_databases_are_ready_and_left_as_they_are(empty_server: str, role: Callable[..., Done]) -> None:
    for name in (TIMESTEP, PREFECT):
        on(empty_server, "postgres", f"create database {name}")
        at(empty_server, name, "9999")
    for arguments in ((), ("--wait",)):
        code, out, err = role(empty_server, *arguments)
        assert (code, out.count(str(Standing.NEWER)), err) == (0, 2, "")
    assert {name: asyncio.run(Database(empty_server).revisions(name)) for name in (TIMESTEP, PREFECT)} == {
        TIMESTEP: {"9999"},
        PREFECT: {"9999"},
    }


SET = """
    select unnest(setconfig) from pg_db_role_setting join pg_database on pg_database.oid = setdatabase
    where datname = current_database() and setrole = 0
"""


def test_sessions_of_machines_that_are_gone_end_soon_unless_somebody_set_that(
    empty_server: str, role: Callable[..., Done]
) -> None:
    for name in (TIMESTEP, PREFECT):
        on(empty_server, "postgres", f"create database {name}")
        at(empty_server, name, "9999")
    on(empty_server, "postgres", f"alter database {PREFECT} set tcp_keepalives_idle = '77s'")
    for _ in range(2):
        assert role(empty_server)[0] == 0
    for name, idle in ((TIMESTEP, "10s"), (PREFECT, "77s")):
        kept = dict(row[0].split("=") for row in on(empty_server, name, SET))
        assert kept == {"tcp_keepalives_idle": idle, "tcp_keepalives_interval": "5s", "tcp_user_timeout": "30s"}


def test_who_may_not_set_that_migrates_all_the_same(empty_server: str, role: Callable[..., Done]) -> None:
    on(empty_server, "postgres", "drop role if exists poor", "create role poor login")
    for name in (TIMESTEP, PREFECT):
        on(empty_server, "postgres", f"create database {name}")
        at(empty_server, name, "9999")
        on(empty_server, name, "grant select on alembic_version to poor")
    code, out, err = role(as_user(empty_server, "poor"))
    assert (code, err) == (0, "")
    for name in (TIMESTEP, PREFECT):
        assert f"Database '{name}' keeps its own patience with machines that are gone: must be owner" in out
        assert not on(empty_server, name, SET)


def test_a_database_that_starts_is_waited_for_and_one_that_never_does_is_named(
    empty_server: str, role: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (TIMESTEP, PREFECT):
        on(empty_server, "postgres", f"create database {name}")
        at(empty_server, name, "9999")
    folder = parse_qs(urlsplit(empty_server).query)["host"][0]
    later = tmp_path / "s"
    threading.Timer(2.0, lambda: later.symlink_to(folder)).start()
    code, out, err = role(make_url(empty_server).update_query_dict({"host": str(later)}).render_as_string(False))
    assert (code, out.count("waiting for it"), err) == (0, 1, "")

    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 1.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"postgresql://user:hidden@127.0.0.1:{free.getsockname()[1]}"
        for arguments in ((), ("--wait",)):
            code, out, err = role(nowhere, *arguments)
            assert (code, out.count("waiting for it"), err.count("\n")) == (1, 1, 1)
            assert "No database answered at" in err
            assert "hidden" not in out + err


def test_who_only_waits_for_a_migration_that_never_comes_gives_up(
    empty_server: str, role: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 1.5)
    code, _, err = role(empty_server, "--wait")
    assert (code, err) == (1, "Database 'timestep' was not migrated within 1.5 s.\n")


def test_a_user_who_is_refused_or_may_not_is_told_so_at_once(empty_server: str, role: Callable[..., Done]) -> None:
    begun = time.monotonic()
    for arguments in ((), ("--wait",)):
        code, _, err = role(as_user(empty_server, "nobody_here"), *arguments)
        assert (code, err.count("\n")) == (1, 1)
        assert 'role "nobody_here" does not exist' in err
    on(empty_server, "postgres", "drop role if exists poor", "create role poor login")
    code, _, err = role(as_user(empty_server, "poor"))
    assert (code, err.count("\n")) == (1, 1)
    assert "may not create the databases 'prefect' and 'timestep'" in err
    for name in (TIMESTEP, PREFECT):
        on(empty_server, "postgres", f"create database {name}")
    code, _, err = role(as_user(empty_server, "poor"))
    assert (code, err.count("\n")) == (1, 1), err
    assert "may not migrate: permission denied for schema public. Make it the owner of the databases" in err
    assert time.monotonic() - begun < 60
    on(empty_server, "postgres", "drop role poor")


def test_without_a_database_nothing_can_be_meant(
    role: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    assert role("") == (1, "", "No database is named: set TIMESTEP_DATABASE_URL.\n")


async def test_a_key_made_elsewhere_is_taken_in_once(database: Database) -> None:
    them = Keys(database)
    found = await asyncio.gather(*(them.take_in(KEY, "first", [Scope.ADMIN]) for _ in range(5)))
    assert sorted(found) == [False] * 4 + [True]
    assert await them.usable()
    with pytest.raises(UsageError, match="at least 32 characters"):
        await them.take_in("guess me", "first", [Scope.ADMIN])
