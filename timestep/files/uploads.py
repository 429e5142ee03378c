"""Uploads: files that come in parts, each stored whole under ``uploads/<id>/`` before it is acknowledged.

Where it stands is in the database alone: whichever server is killed, the parts that were acknowledged are there, and
the upload goes on with those that were not.
"""

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.references import Reference
from storage.source import Data
from storage.store import ObjectStore
from timestep.database.engine import Database
from timestep.database.models import FileRow, UploadPartRow, UploadRow
from timestep.errors import NotFoundError, ParameterError, TimestepError, UsageError
from timestep.files.files import Files, clear, label
from timestep.files.lines import check_lines

PREFIX = "uploads"
PENDING, COMPLETED, CANCELLED, EXPIRED = "pending", "completed", "cancelled", "expired"
# From the last part on.
LIFETIME = timedelta(hours=1)
# Of one upload. One whose answer was lost on the way is sent again: parts that are equal count once against its bytes,
# and all together may have so many times as much.
MOST_PARTS, MOST_TIMES = 10_000, 2
# How long one that has ended is known: who asks again learns how it ended.
REMEMBERED = timedelta(days=1)
_ID = re.compile(r"upload_[0-9a-f]{32}")


class Uploads:
    """The uploads of a service. Every method raises ServiceUnavailableError while the database is away."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self._database, self._store = database, store
        self._files = Files(database, store)

    async def create(
        self, filename: str, purpose: str, size: int, mime_type: str, file_expires_after: int | None = None
    ) -> UploadRow:
        """Begins an upload of ``size`` bytes; its file lives ``file_expires_after`` seconds, or for good."""
        row = UploadRow(
            id=f"upload_{uuid.uuid4().hex}",
            filename=label(filename),
            purpose=purpose,
            bytes=size,
            mime_type=label(mime_type),
            file_expires_after=file_expires_after,
            expires_at=datetime.now(UTC) + LIFETIME,
        )
        async with self._database.session() as session:
            session.add(row)
            await session.flush()
            await session.refresh(row)
        return row

    async def room(self, upload_id: str) -> int:
        """How many bytes a part may have. Errors as of :meth:`add_part`."""
        upload = await self._get(upload_id)
        _check_pending(upload)
        return upload.bytes

    async def add_part(self, upload_id: str, data: Data) -> UploadPartRow:
        """Stores a part, and gives the upload new time.

        Raises:
            NotFoundError: there is no such upload.
            UsageError: it has ended, is declared to have fewer bytes than this part, or has too many parts.
        """
        upload = await self._get(upload_id)
        _check_pending(upload)
        part_id = f"part_{uuid.uuid4().hex}"
        stored = await self._store.put(f"{PREFIX}/{upload_id}/{part_id}", data)
        try:
            if stored.size > upload.bytes:
                raise ParameterError("data", f"has {stored.size} bytes, the whole upload {upload.bytes}.")
            row = UploadPartRow(
                id=part_id, upload_id=upload_id, bytes=stored.size, key=stored.key, sha256=stored.sha256
            )
            async with self._database.session() as session:
                # Its row is locked from here on: parts that come at once are counted one after the other.
                await self._change(session, upload_id, expires_at=func.now() + LIFETIME)
                await _check_sum(session, upload, row)
                session.add(row)
                await session.flush()
                await session.refresh(row)
        except UsageError:
            await clear(self._store, stored.key)
            raise
        return row

    async def complete(self, upload_id: str, part_ids: Sequence[str], md5: str | None = None) -> UploadRow:
        """Makes the file of these parts, in this order. Asked again with the same parts, it answers the same.

        Raises:
            NotFoundError: there is no such upload.
            UsageError: it has ended otherwise, or the parts are not those that make the file that was declared.
        """
        upload = await self._get(upload_id)
        if _completed_with(upload, part_ids):
            return upload
        _check_pending(upload)
        try:
            await self._finish(upload, part_ids, md5)
        except TimestepError:
            now = await self._get(upload_id)
            if not _completed_with(now, part_ids):
                _check_pending(now)
                raise
            # By another request meanwhile, which took the parts away.
        await self._clear(upload_id)
        return await self._get(upload_id)

    async def _finish(self, upload: UploadRow, part_ids: Sequence[str], md5: str | None) -> None:
        """Joins the parts to the file."""
        parts = await self._parts(upload, part_ids)
        async with self._database.session() as session:
            await self._change(session, upload.id, expires_at=func.now() + LIFETIME)  # while its parts are joined
        digest = hashlib.md5(usedforsecurity=False) if md5 is not None else None

        async def finish(session: AsyncSession, file: FileRow) -> None:
            values = {"status": COMPLETED, "file_id": file.id, "part_ids": list(part_ids)}
            await self._change(session, upload.id, **values)

        lives = upload.file_expires_after
        async with self._store.spool(self._joined(parts, digest)) as source:
            if digest is not None and digest.hexdigest() != str(md5).strip().lower():
                raise ParameterError("md5", f"is '{label(str(md5))[:64]}', that of the parts is {digest.hexdigest()}.")
            await asyncio.to_thread(check_lines, source, upload.purpose, "part_ids")
            expires_at = None if lives is None else datetime.now(UTC) + timedelta(seconds=lives)
            await self._files.create(source, upload.filename, upload.purpose, expires_at, within=finish)

    async def cancel(self, upload_id: str) -> UploadRow:
        """Ends the upload; its parts go. NotFoundError: no such upload. UsageError: it has ended otherwise."""
        upload = await self._get(upload_id)
        if upload.status != CANCELLED:
            async with self._database.session() as session:
                await self._change(session, upload_id, status=CANCELLED)
        await self._clear(upload_id)
        return await self._get(upload_id)

    async def sweep(self, remembered: timedelta = REMEMBERED) -> None:
        """Ends uploads that have expired, and removes the parts of those that have ended. Safe with several servers."""
        late = (UploadRow.status == PENDING) & (UploadRow.expires_at <= func.now())
        ended = UploadRow.status != PENDING
        with_parts = select(UploadPartRow.upload_id).join(UploadRow, UploadRow.id == UploadPartRow.upload_id)
        old = select(UploadRow.id).where(ended, UploadRow.expires_at < func.now() - remembered)
        async with self._database.session() as session:
            await session.execute(update(UploadRow).where(late).values(status=EXPIRED))
        async with self._database.session() as session:
            unclear = set((await session.scalars(with_parts.where(ended).distinct())).all())
            forgotten = set((await session.scalars(old)).all())
        for upload_id in unclear | forgotten:
            await self._clear(upload_id)
        async with self._database.session() as session:
            await session.execute(delete(UploadRow).where(UploadRow.id.in_(forgotten)))
        await self._store.sweep(f"{PREFIX}/")

    async def _get(self, upload_id: str) -> UploadRow:
        if not _ID.fullmatch(upload_id):
            raise NotFoundError("upload", label(upload_id)[:100])
        async with self._database.session() as session:
            row = await session.get(UploadRow, upload_id)
        if row is None:
            raise NotFoundError("upload", upload_id)
        if row.status == PENDING and row.expires_at <= datetime.now(UTC):
            row.status = EXPIRED  # the next sweep writes it
        return row

    async def _change(self, session: AsyncSession, upload_id: str, **values: Any) -> None:
        """Changes an upload that is pending. UsageError: it isn't, any more."""
        pending = (UploadRow.id == upload_id, UploadRow.status == PENDING, UploadRow.expires_at > func.now())
        changed = await session.scalar(update(UploadRow).where(*pending).values(**values).returning(UploadRow.id))
        if changed is None:
            _check_pending(await self._get(upload_id))
            raise _ended(upload_id, EXPIRED)  # a moment ago, or by the database's clock

    async def _parts(self, upload: UploadRow, part_ids: Sequence[str]) -> list[UploadPartRow]:
        """The parts of these ids. UsageError: one is missing or there twice, or they don't add up."""
        async with self._database.session() as session:
            found = await session.scalars(select(UploadPartRow).where(UploadPartRow.upload_id == upload.id))
            known = {part.id: part for part in found}
        for part_id in part_ids:
            if part_id not in known:
                raise ParameterError("part_ids", f"has '{label(part_id)[:100]}', which is no part of '{upload.id}'.")
        if len(set(part_ids)) < len(part_ids):
            raise ParameterError("part_ids", "has a part twice.")
        parts = [known[part_id] for part_id in part_ids]
        if (size := sum(part.bytes for part in parts)) != upload.bytes:
            raise ParameterError("part_ids", f"are of {size} bytes together, but {upload.bytes} were declared.")
        return parts

    async def _joined(self, parts: Sequence[UploadPartRow], digest: Any) -> AsyncIterator[bytes]:
        for part in parts:
            stored = Reference(key=part.key, sha256=part.sha256, size=part.bytes)
            async for piece in self._store.stream(stored):
                if digest is not None:
                    await asyncio.to_thread(digest.update, piece)
                yield piece

    async def _clear(self, upload_id: str) -> None:
        """Removes the parts of an upload that has ended."""
        await clear(self._store, f"{PREFIX}/{upload_id}/")
        async with self._database.session() as session:
            await session.execute(delete(UploadPartRow).where(UploadPartRow.upload_id == upload_id))


def _completed_with(upload: UploadRow, part_ids: Sequence[str]) -> bool:
    return upload.status == COMPLETED and upload.part_ids == list(part_ids)


async def _check_sum(session: AsyncSession, upload: UploadRow, part: UploadPartRow) -> None:
    """UsageError: with this part the upload has more of them, or more bytes, than can be meant."""
    mine = UploadPartRow.upload_id == upload.id
    sums = select(func.count(), func.coalesce(func.sum(UploadPartRow.bytes), 0))
    others = select(UploadPartRow.sha256, UploadPartRow.bytes).where(mine, UploadPartRow.sha256 != part.sha256)
    count, size = (await session.execute(sums.where(mine))).one()
    of_others = await session.scalar(select(func.coalesce(func.sum(others.distinct().subquery().c.bytes), 0))) or 0
    if count >= MOST_PARTS:
        raise UsageError(f"Upload '{upload.id}' has {MOST_PARTS} parts, which is the most. Begin a new one.")
    for sum_, most in ((of_others, upload.bytes), (size, MOST_TIMES * upload.bytes)):
        if sum_ + part.bytes > most:
            why = f"would make {sum_ + part.bytes} bytes of parts, {upload.bytes} were declared."
            raise ParameterError("data", f"{why} Send a part that is missing, or begin a new upload.")


def _check_pending(upload: UploadRow) -> None:
    if upload.status != PENDING:
        raise _ended(upload.id, upload.status)


def _ended(upload_id: str, status: str) -> UsageError:
    return UsageError(f"Upload '{upload_id}' is {status}. Begin a new one.")
