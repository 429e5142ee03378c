"""Keys are looked up a few at a time, and what was found is remembered for a second."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from timestep.database.engine import Database
from timestep.database.models import KeyRow
from timestep.errors import AuthenticationError, RateLimitError
from timestep.keys import Keys, Scope
from timestep.server.security import authentication
from timestep.server.security.authentication import LOOKUPS, Gate
from timestep.settings import Settings


class House:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def database(self) -> Database:
        return self._database


class Watched:
    """Which keys the database was asked for, and for how many at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.wanted, self.now, self.most = Counter[str](), 0, 0, 0
        find, wanted = Keys.find, Keys.wanted

        async def finding(keys: Keys, key: str) -> KeyRow | None:
            self.asked[key] += 1
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await asyncio.sleep(0.01)
                return await find(keys, key)
            finally:
                self.now -= 1

        async def wanting(keys: Keys) -> bool:
            self.wanted += 1
            return await wanted(keys)

        monkeypatch.setattr(Keys, "find", finding)
        monkeypatch.setattr(Keys, "wanted", wanting)


async def ask(gate: Gate, database: Database, key: str) -> Any:
    return await gate.caller([f"Bearer {key}"], House(database))  # type: ignore[arg-type]


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "REMEMBERED_SECONDS", 60.0)


@pytest.mark.usefixtures("remembering")
async def test_a_key_is_looked_up_once_whether_it_is_known_or_not(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key = await Keys(database).create("ci", [Scope.INFERENCE])
    watched, gate = Watched(monkeypatch), Gate(Settings(database_url=database.timestep_url))
    for times in (1, 5):
        names = (key, "made-up") * times
        found = [(await asyncio.gather(ask(gate, database, name), return_exceptions=True))[0] for name in names]
        assert all(isinstance(error, AuthenticationError) for error in found[1::2])
        assert {caller.scopes for caller in found[::2]} == {frozenset({Scope.INFERENCE})}
    assert (watched.asked, watched.wanted) == (Counter({key: 1, "made-up": 1}), 1)


@pytest.mark.usefixtures("remembering")
async def test_made_up_keys_displace_nobodys_and_are_looked_up_a_few_at_a_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "REMEMBERED_KEYS", 8)
    monkeypatch.setattr(authentication, "LOOKUPS_WAITING", 20)
    _, key = await Keys(database).create("ci", [Scope.INFERENCE])
    watched, gate = Watched(monkeypatch), Gate(Settings(database_url=database.timestep_url))
    await ask(gate, database, key)
    made_up = [f"made-up-{number}" for number in range(50)]
    refused = await asyncio.gather(*(ask(gate, database, name) for name in made_up), return_exceptions=True)
    kinds = Counter(type(error) for error in refused)
    assert set(kinds) == {AuthenticationError, RateLimitError} and kinds[AuthenticationError] >= 20
    assert watched.most == LOOKUPS
    await ask(gate, database, key)
    assert watched.asked[key] == 1
