"""The files that a batch's results are in: its lines' answers as recorded, in the order of the input."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.references import Reference
from storage.store import ObjectStore
from timestep.batches.record import LINES, WRITTEN, Answer, Ended, Results, Written, note_written, written
from timestep.database.engine import Database
from timestep.database.models import FileRow, UnitRow
from timestep.files import Files

PURPOSE = "batch_output"
EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")

END = "end"  # a batch that came to its end; else the attempt after which it was stopped


class _WrittenError(Exception):
    """Somebody else wrote this file meanwhile."""


@dataclass
class _Counted:
    """Lines that are counted as they pass."""

    lines: AsyncIterator[bytes]
    count: int = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for line in self.lines:
            self.count += 1
            yield line


class ResultFiles:
    """Writes them, as often as asked: each file is there once for each ``ending`` of the batch, whoever writes it.

    A batch that was stopped may be started again, and then has more to tell at its next ending.
    """

    def __init__(self, database: Database, store: ObjectStore, run_id: UUID, expires_after: int | None = None) -> None:
        self._database, self._store, self._run_id = database, store, run_id
        self._files = Files(database, store)
        self._expires_after = expires_after

    async def write(
        self, status: Ended, total: int, ending: str, unanswered: AsyncIterator[tuple[int, str]] | None = None
    ) -> Results:
        """Both files, each if it holds anything.

        ``unanswered``: numbers and ids of the lines that the batch's window was too short for.
        """
        good = await self._file(ending, "output", self._answered(good=True))
        bad = await self._file(ending, "error", self._refused(unanswered))
        return Results(
            status=status,
            total=total,
            completed=good.lines,
            failed=bad.lines if status in ("cancelled", "failed") else total - good.lines,
            output_file_id=good.id,
            error_file_id=bad.id,
        )

    async def _file(self, ending: str, kind: str, lines: AsyncIterator[bytes]) -> Written:
        position = f"{WRITTEN}{ending}/{kind}"
        if (before := await written(self._database, self._run_id, position)) is not None:
            return before
        counted = _Counted(lines)
        stream = aiter(counted)
        first = await anext(stream, None)
        if first is None:
            return Written()

        async def note(session: AsyncSession, row: FileRow) -> None:
            if not await note_written(session, self._run_id, position, Written(id=row.id, lines=counted.count)):
                raise _WrittenError

        name = f"batch_{self._run_id.hex}_{kind}.jsonl"
        expires_at = datetime.now(UTC) + timedelta(seconds=self._expires_after) if self._expires_after else None
        with suppress(_WrittenError):
            await self._files.create(_from(first, stream), name, PURPOSE, expires_at, within=note)
        return await written(self._database, self._run_id, position) or Written()

    async def _refused(self, unanswered: AsyncIterator[tuple[int, str]] | None) -> AsyncIterator[bytes]:
        async for line in self._answered(good=False):
            yield line
        if unanswered is not None:
            code, message = EXPIRED
            async for number, custom_id in unanswered:
                yield self._line(number, custom_id, None, {"code": code, "message": message})

    async def _answered(self, *, good: bool) -> AsyncIterator[bytes]:
        """The lines on record, a page at a time."""
        order = func.length(UnitRow.position), UnitRow.position  # by number
        mine = (UnitRow.step_id == str(self._run_id), UnitRow.position.startswith(LINES))
        chosen = select(UnitRow).where(*mine, UnitRow.finished_at.is_not(None)).order_by(*order)
        offset, page = 0, 500
        while True:
            async with self._database.session() as session:
                units = list(await session.scalars(chosen.limit(page).offset(offset)))
            for unit in units:
                answer = await self._answer(unit)
                if (answer.status < 400) is good:
                    response = {
                        "status_code": answer.status,
                        "request_id": answer.request_id,
                        "body": await self._body(answer),
                    }
                    number, asked = int(unit.position.removeprefix(LINES)), unit.request or {}
                    yield self._line(number, asked["custom_id"], response, None)
            if len(units) < page:
                return
            offset += page

    async def _answer(self, unit: UnitRow) -> Answer:
        """The answer, which the ledger keeps elsewhere where it is no JSON to the database."""
        if (kept := unit.result_reference) is None:
            return Answer.model_validate(unit.result)
        text = kept["text"] if "text" in kept else await self._store.get(Reference.model_validate(kept))
        return Answer.model_validate(json.loads(text))

    async def _body(self, answer: Answer) -> Any:
        return answer.body if answer.stored is None else json.loads(await self._store.get(answer.stored))

    def _line(self, number: int, custom_id: str, response: Any, error: Any) -> bytes:
        line = {
            "id": f"batch_req_{uuid5(self._run_id, str(number)).hex}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        return f"{json.dumps(line, ensure_ascii=False)}\n".encode(errors="backslashreplace")


async def _from(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for line in rest:
        yield line
