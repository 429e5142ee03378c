"""API keys: shown once, kept as a hash, ended at once; and a start that other machines would reach needs one."""

import asyncio
import hashlib
import json
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from deployments import service_key
from deployments.local import free_port
from deployments.local import up as start_service
from deployments.offline import database_of
from tests.test_cli import timestep
from timestep.database.engine import Database
from timestep.errors import NotFoundError, UsageError
from timestep.keys import Keys, Scope
from timestep.settings import Settings


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


@pytest.fixture
def home() -> Iterator[Path]:
    # A short path: PostgreSQL's socket lies below it.
    folder = Path(tempfile.mkdtemp(prefix="tsk-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def test_the_database_holds_a_keys_hash_and_not_the_key(keys: Keys, database: Database) -> None:
    row, key = await keys.create("ci", [Scope.INFERENCE])
    assert row.hash == hashlib.sha256(key.encode()).hexdigest()
    assert len(key) >= 43 and key.startswith(row.shown) and len(row.shown) == 8
    async with database.session() as session:
        stored = str((await session.execute(text("select api_keys::text from api_keys"))).all())
    assert row.hash in stored and key not in stored


async def test_a_key_is_found_until_it_is_revoked(keys: Keys) -> None:
    row, key = await keys.create("ci", [Scope.TRAINING, Scope.INFERENCE], 7)
    found = await keys.find(key)
    assert found is not None
    assert (found.id, found.scopes, found.requests_per_minute) == (row.id, ["training", "inference"], 7)
    assert await keys.find(f"{key}x") is None
    await keys.revoke("ci")
    assert await keys.find(key) is None
    assert [(one.id, one.revoked_at is None) for one in await keys.all()] == [(row.id, False)]


async def test_a_revoked_key_goes_on_saying_that_keys_are_wanted(keys: Keys) -> None:
    assert not await keys.wanted()
    row, key = await keys.create("ci", [Scope.ADMIN])
    await keys.revoke(key)
    assert await keys.wanted() and not await keys.usable()
    await keys.revoke(row.id, forget=True)
    assert not await keys.wanted()


async def test_which_key_is_meant_must_be_plain(keys: Keys) -> None:
    first, _ = await keys.create("ci", [Scope.ADMIN])
    second, _ = await keys.create("ci", [Scope.ADMIN])
    with pytest.raises(UsageError, match=rf"2 keys are called 'ci': {first.id}, {second.id}|{second.id}, {first.id}"):
        await keys.revoke("ci")
    await keys.revoke(second.id)
    assert (await keys.revoke("ci")).id == first.id
    with pytest.raises(NotFoundError, match=r"No key 'ts-abcde…'\."):
        await keys.revoke("ts-abcdefghijklmnop")


@pytest.mark.parametrize(("name", "scopes"), [(" ", [Scope.ADMIN]), ("ci", [])])
async def test_a_key_has_a_name_and_a_scope(name: str, scopes: list[Scope], keys: Keys) -> None:
    with pytest.raises(UsageError, match="needs a name and at least one scope"):
        await keys.create(name, scopes)


async def test_a_bucket_is_shared_by_all_and_what_is_refused_takes_nothing(keys: Keys, database: Database) -> None:
    other = Database(database.timestep_url)
    try:
        left = await asyncio.gather(*((keys, Keys(other))[n % 2].spend("key_1", 3) for n in range(9)))
    finally:
        await other.close()
    assert sorted(round(one) for one in left) == [-1] * 6 + [0, 1, 2]
    async with database.session() as session:  # a third of the bucket's minute passes
        await session.execute(text("update rates set at = at - interval '20 seconds'"))
    assert await keys.spend("key_1", 3) >= 0
    assert await keys.spend("key_1", 3) < 0


async def test_a_full_bucket_holds_no_more(keys: Keys, database: Database) -> None:
    await keys.spend("key_1", 3)
    async with database.session() as session:
        await session.execute(text("update rates set at = at - interval '1 day'"))
    assert [await keys.spend("key_1", 3) >= 0 for _ in range(4)] == [True, True, True, False]


async def test_a_service_that_others_reach_needs_a_key_first(home: Path) -> None:
    def settings(host: str) -> Settings:
        return Settings(home=home, host=host, port=free_port(), prefect_port=free_port())

    with pytest.raises(UsageError, match=r"^Host '0\.0\.0\.0' .*no API key\. Make one first: timestep keys create$"):
        await start_service(settings("0.0.0.0"))
    async with database_of(settings("127.0.0.1")) as database:  # no service runs
        await Keys(database).create("ci", [Scope.ADMIN])
        done = await asyncio.to_thread(timestep, "keys", "list", "--home", str(home))  # while another does the same
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "starting or ending" in done.stderr
    shown = await asyncio.to_thread(timestep, "keys", "list", "--home", str(home), "--json")
    assert [key["name"] for key in json.loads(shown.stdout)] == ["ci"]


async def test_the_command_line_makes_and_ends_keys(keys: Keys, database: Database, tmp_path: Path) -> None:
    async def said(*arguments: str) -> tuple[int, str, str]:
        url = database.timestep_url
        done = await asyncio.to_thread(timestep, "keys", *arguments, "--home", str(tmp_path), DATABASE_URL=url)
        return done.returncode, done.stdout, done.stderr

    code, key, told = await said("create", "ci", "--scope", "training", "--requests-per-minute", "7")
    row = await keys.find(key.removesuffix("\n"))
    assert row is not None
    assert (row.name, row.scopes, row.requests_per_minute) == ("ci", ["training"], 7)
    assert (code, told) == (0, f"Key 'ci' ({row.id}), for training. It is not shown again:\n")
    other = json.loads((await said("create", "--json"))[1])  # as the defaults have it
    assert (other["name"], other["scopes"], other["requests_per_minute"]) == ("default", ["inference"], None)
    assert await said("revoke", "ci") == (0, f"{row.id} revoked\n", "")
    assert await keys.find(key.strip()) is None and await keys.find(other["key"]) is not None
    for name in ("ci", "nobody"):
        assert await said("revoke", name) == (1, "", f"timestep: No key '{name}'.\n")
    assert (await said("revoke", other["key"]))[1] == f"{other['id']} revoked\n"
    assert not await keys.usable()
    listed = (await said("list"))[1]
    assert listed.count("  revoked  ") == 2 and key.strip() not in listed and other["key"] not in listed


@pytest.mark.parametrize(
    ("host", "private"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "", "10.0.0.1", "localhost.example.org")),
    ],
)
def test_only_loopback_is_private(host: str, private: bool) -> None:
    assert Settings(host=host).is_private is private


def test_a_homes_own_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    settings.run_dir.mkdir()
    assert service_key.known(settings) is None
    key = service_key.kept(settings)
    assert service_key.kept(settings) == service_key.known(settings) == key
    path = service_key.key_path(settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.get_secret_value() in Settings(home=tmp_path, service_key=key).environment().values()
    path.chmod(0o644)
    with pytest.raises(UsageError, match="Others may read"):
        service_key.kept(settings)
