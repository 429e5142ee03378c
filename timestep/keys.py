"""API keys: who may ask the HTTP API for what. A key is shown once; the database holds its hash.

A plain SHA-256 is enough: a key is 256 random bits, which nobody can guess however quick the hash, and a salt or a
slow hash (right for passwords, which people choose) would only keep a key from being looked up by its hash.
"""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Float, case, cast, delete, exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert

from timestep.database.engine import Database
from timestep.database.models import KeyRow, RateRow
from timestep.errors import NotFoundError, UsageError
from timestep.settings import Settings

PREFIX = "ts-"
SHORTEST = 32  # characters of a key that was made elsewhere
SHOWN = len(PREFIX) + 5  # characters; what is left unknown is still 226 bits


class Scope(StrEnum):
    """What a key may do; ``admin`` covers the other two."""

    INFERENCE = "inference"
    TRAINING = "training"
    ADMIN = "admin"


def hash_of(key: str) -> str:
    """What the database knows a key by."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """The keys of one database. Every method raises ServiceUnavailableError where the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, name: str, scopes: Iterable[Scope], requests_per_minute: int | None = None
    ) -> tuple[KeyRow, str]:
        """A new key's row, and the key: nobody can tell it again. UsageError: no name or no scope."""
        granted = [scope.value for scope in dict.fromkeys(scopes)]
        if not name.strip() or not granted:
            raise UsageError("A key needs a name and at least one scope: inference, training or admin.")
        key = f"{PREFIX}{secrets.token_urlsafe(32)}"
        row = KeyRow(
            id=f"key_{secrets.token_hex(8)}",
            name=name,
            hash=hash_of(key),
            shown=key[:SHOWN],
            scopes=granted,
            requests_per_minute=requests_per_minute,
        )
        async with self._database.session() as session:
            session.add(row)
            await session.flush()
            await session.refresh(row)
        return row, key

    async def take_in(self, key: str, name: str, scopes: Iterable[Scope]) -> bool:
        """Let a key in that was made elsewhere, once: False where it is known, also where it has been revoked.

        UsageError: it is too short to be left to nobody's guess.
        """
        if len(key) < SHORTEST:
            raise UsageError(f"An API key has at least {SHORTEST} characters, and is random: '{PREFIX}…'.")
        row = {
            "id": f"key_{secrets.token_hex(8)}",
            "name": name,
            "hash": hash_of(key),
            "shown": key[:SHOWN],
            "scopes": [scope.value for scope in scopes],
        }
        statement = insert(KeyRow).values(row).on_conflict_do_nothing(index_elements=[KeyRow.hash])
        async with self._database.session() as session:
            return bool((await session.scalars(statement.returning(KeyRow.id))).all())

    async def all(self) -> Sequence[KeyRow]:
        """Every key, the revoked ones included, in the order of their creation."""
        async with self._database.session() as session:
            return (await session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))).all()

    async def revoke(self, name: str, *, forget: bool = False) -> KeyRow:
        """End the key with this id, name or first characters; ``forget`` deletes its record too.

        A record of a revoked key still says that keys are wanted: only where none is left is the API open again.

        Raises:
            NotFoundError: no such key.
            UsageError: several are meant.
        """
        async with self._database.session() as session:
            called = or_(KeyRow.id == name, KeyRow.name == name, KeyRow.shown == name[:SHOWN])
            rows = (await session.scalars(select(KeyRow).where(called).with_for_update())).all()
            found = [row for row in rows if forget or row.revoked_at is None]
            if not found:
                raise NotFoundError("key", name if not name.startswith(PREFIX) else f"{name[:SHOWN]}…")
            if len(found) > 1:
                raise UsageError(f"{len(found)} keys are called '{name}': {', '.join(row.id for row in found)}.")
            found[0].revoked_at = found[0].revoked_at or datetime.now(UTC)
            if forget:
                await session.execute(delete(KeyRow).where(KeyRow.id == found[0].id))
            await session.execute(delete(RateRow).where(RateRow.key_id == found[0].id))
            return found[0]

    async def find(self, key: str) -> KeyRow | None:
        """The row of a key that is not revoked."""
        async with self._database.session() as session:
            called = (KeyRow.hash == hash_of(key)) & KeyRow.revoked_at.is_(None)
            return (await session.scalars(select(KeyRow).where(called))).one_or_none()

    async def wanted(self) -> bool:
        """Whether there has been any key: from the first one on, the API asks for one."""
        async with self._database.session() as session:
            return bool(await session.scalar(select(exists().where(KeyRow.id.is_not(None)))))

    async def usable(self) -> bool:
        """Whether anybody holds a key that counts."""
        async with self._database.session() as session:
            return bool(await session.scalar(select(exists().where(KeyRow.revoked_at.is_(None)))))

    async def spend(self, key_id: str, per_minute: int) -> float:
        """Take one request out of the key's bucket, which holds ``per_minute`` and fills within a minute.

        One statement, on the database's clock: the answer is the same for every server. Gives what is left of
        the bucket; below zero, the request was not there to take, and that many are to flow in before one is.
        """
        now = func.clock_timestamp()
        passed = func.greatest(func.extract("epoch", now - RateRow.at), 0)
        # What was refused took nothing: below zero stands what was there, less the request.
        had = RateRow.left + case((RateRow.left < 0, 1), else_=0)
        left = func.least(had + cast(passed, Float) * (per_minute / 60), per_minute) - 1
        statement = (
            insert(RateRow)
            .values(key_id=key_id, left=per_minute - 1, at=now)
            .on_conflict_do_update(index_elements=[RateRow.key_id], set_={"left": left, "at": now})
            .returning(RateRow.left)
        )
        async with self._database.session() as session:
            return float(await session.scalar(statement) or 0.0)


async def check_listening(settings: Settings, database: Database) -> None:
    """UsageError where other machines would reach the HTTP server and nobody holds a key to it."""
    if not settings.is_private and not await Keys(database).usable():
        why = f"Host '{settings.host}' is reached by other machines, and there is no API key."
        raise UsageError(f"{why} Make one first: timestep keys create")
