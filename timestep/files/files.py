"""Files: bytes in storage under ``files/<id>/``, and a row that says what they are. A name is a label, never a path.

A file is there whole or not at all, whenever the process is killed: its row is seen once its bytes are stored, and
what a killed process began or was about to remove is removed by :meth:`Files.sweep`.
"""

import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, literal, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.references import Reference
from storage.source import Data, Source
from storage.store import ObjectStore
from timestep.database.engine import Database
from timestep.database.models import FileRow
from timestep.errors import NotFoundError, StorageError

logger = logging.getLogger(__name__)

PREFIX = "files"
ARRIVING, READY, LEAVING = "arriving", "ready", "leaving"
# A file whose bytes were on their way to storage for so long lost its process.
ABANDONED_AFTER = timedelta(days=1)
LABEL_LENGTH = 512
_ID = re.compile(r"file-[0-9a-f]{32}")
# What no database takes, or no header: control characters, and halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Within = Callable[[AsyncSession, FileRow], Awaitable[None]]


class Files:
    """The files of a service. Every method raises ServiceUnavailableError while the database is away."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self._database, self._store = database, store

    async def create(
        self,
        data: Data,
        filename: str,
        purpose: str,
        expires_at: datetime | None = None,
        *,
        within: Within | None = None,
        file_id: str | None = None,
    ) -> FileRow:
        """Stores a file: bytes, the path of one, or a stream of any length. ``expires_at`` has a time zone.

        ``within`` acts in the transaction that makes the file visible; its error leaves no file. Again with a
        ``file_id`` of the caller's, which one at a time may use, the file that is there already is the answer.

        Raises:
            StorageError: storage can't be reached, or is full.
        """
        async with self._store.spool(data) as source:
            row = await self._announce(source, filename, purpose, expires_at, file_id)
            if row.state == READY:
                return row
            try:
                reference = await self._store.put(row.key, source)
                return await self._show(row.id, reference, within)
            except Exception:
                await self._drop(row.id)
                raise

    async def get(self, file_id: str) -> FileRow:
        """The file's row. NotFoundError: there is no such file, or it has expired."""
        async with self._database.session() as session:
            row = await session.scalar(select(FileRow).where(FileRow.id == _checked(file_id), _visible()))
        if row is None:
            raise NotFoundError("file", file_id)
        return row

    async def list(
        self, *, purpose: str | None = None, after: str | None = None, limit: int = 10_000, ascending: bool = False
    ) -> Sequence[FileRow]:
        """At most ``limit`` files, the newest first. NotFoundError: there is no file ``after``."""
        place = tuple_(FileRow.created_at, FileRow.id)
        query = select(FileRow).where(_visible()).limit(limit)
        if purpose is not None:
            query = query.where(FileRow.purpose == purpose)
        if after is not None:
            last = await self.get(after)
            there = tuple_(literal(last.created_at), literal(last.id))
            query = query.where(place > there if ascending else place < there)
        columns = (FileRow.created_at, FileRow.id)
        query = query.order_by(*(column if ascending else column.desc() for column in columns))
        async with self._database.session() as session:
            return (await session.scalars(query)).all()

    async def reference(self, file_id: str) -> Reference:
        """Where the file's bytes are, and which. NotFoundError: there is no such file."""
        return reference_of(await self.get(file_id))

    async def open(self, file_id: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The file's bytes, about a MiB at a time; a part of them where ``start`` or ``end`` (excluded) is given.

        Raises:
            NotFoundError: there is no such file.
            IntegrityError: these are not the bytes that were stored; said before the last piece is given.
        """
        async for piece in self.read(await self.get(file_id), start, end):
            yield piece

    async def read(self, row: FileRow, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """As :meth:`open`, of a file whose row is at hand."""
        if start or end is not None:
            async for piece in self._store.stream_range(row.key, start, row.bytes if end is None else end):
                yield piece
            return
        held = b""
        async for piece in self._store.stream(reference_of(row)):
            if held:
                yield held
            held = piece
        if held:
            yield held

    async def delete(self, file_id: str) -> None:
        """Removes the file. NotFoundError: there is no such file."""
        gone = (
            update(FileRow)
            .where(FileRow.id == _checked(file_id), _visible())
            .values(state=LEAVING)
            .returning(FileRow.id)
        )
        async with self._database.session() as session:
            found = await session.scalar(gone)
        if found is None:
            raise NotFoundError("file", file_id)
        await self._drop(file_id)

    async def sweep(self, abandoned_after: timedelta = ABANDONED_AFTER) -> None:
        """Removes files that have expired, and what killed processes left. Safe with several servers at once."""
        late = FileRow.expires_at <= func.now()
        abandoned = (FileRow.state == ARRIVING) & (FileRow.created_at < func.now() - abandoned_after)
        async with self._database.session() as session:
            expired = (FileRow.state == READY) & late
            await session.execute(update(FileRow).where(or_(expired, abandoned)).values(state=LEAVING))
        async with self._database.session() as session:
            leaving = (await session.scalars(select(FileRow.id).where(FileRow.state == LEAVING))).all()
        for file_id in leaving:
            await self._drop(file_id)
        await self._store.sweep(f"{PREFIX}/", abandoned_after)

    async def _announce(
        self, source: Source, filename: str, purpose: str, expires_at: datetime | None, file_id: str | None
    ) -> FileRow:
        """A row nobody sees yet; or the one that is there."""
        file_id = f"file-{uuid.uuid4().hex}" if file_id is None else _checked(file_id)
        values = {"filename": label(filename), "purpose": purpose, "expires_at": expires_at, "bytes": source.size}
        key = f"{PREFIX}/{file_id}/content"
        async with self._database.session() as session:
            added = insert(FileRow).values(id=file_id, key=key, sha256="", **values)
            known = added.on_conflict_do_update(index_elements=["id"], set_={"id": file_id})
            return (await session.scalars(known.returning(FileRow))).one()

    async def _show(self, file_id: str, reference: Reference, within: Within | None) -> FileRow:
        shown = update(FileRow).where(FileRow.id == file_id, FileRow.state == ARRIVING)
        values = {"state": READY, "bytes": reference.size, "sha256": reference.sha256}
        async with self._database.session() as session:
            row = await session.scalar(shown.values(values).returning(FileRow))
            if row is None:
                raise StorageError(self._store.url, f"it took more than {ABANDONED_AFTER} to store '{file_id}'.")
            if within is not None:
                await within(session, row)
        return row

    async def _drop(self, file_id: str) -> None:
        """Removes the bytes, then the row; where storage is away, the next sweep goes on with it."""
        async with self._database.session() as session:
            await session.execute(update(FileRow).where(FileRow.id == file_id).values(state=LEAVING))
        try:
            await clear(self._store, f"{PREFIX}/{file_id}/")
        except StorageError as error:
            logger.warning("File '%s' is removed later: %s", file_id, error)
            return
        async with self._database.session() as session:
            await session.execute(delete(FileRow).where(FileRow.id == file_id))


def reference_of(row: FileRow) -> Reference:
    """Where a file's bytes are, and which."""
    return Reference(key=row.key, sha256=row.sha256, size=row.bytes)


def label(filename: str) -> str:
    """``filename`` as it is shown: what can't be printed is replaced, and it has an end."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", filename)[:LABEL_LENGTH]


async def clear(store: ObjectStore, prefix: str) -> None:
    """Removes every object whose key starts with ``prefix``."""
    async for found in store.list(prefix):
        with suppress(NotFoundError):  # another one was quicker
            await store.delete(found.key)


def _checked(file_id: str) -> str:
    """``file_id``, if it can be one: a database doesn't take every text."""
    if not _ID.fullmatch(file_id):
        raise NotFoundError("file", label(file_id)[:100])
    return file_id


def _visible() -> ColumnElement[bool]:
    return (FileRow.state == READY) & (FileRow.expires_at.is_(None) | (FileRow.expires_at > func.now()))
