"""The files that a batch's results are in: its lines' answers as recorded, in the order of the input."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid5

from sqlalchemy import func, select

from storage.store import ObjectStore
from timestep.batches.record import LINES, Answer, Results
from timestep.database.engine import Database
from timestep.database.models import FileRow, UnitRow
from timestep.files import Files
from timestep.files.files import READY

PURPOSE = "batch_output"
EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")

Status = Literal["completed", "expired", "cancelled"]


class ResultFiles:
    """Writes them, as often as asked: what an earlier process wrote before it died is found again."""

    def __init__(self, database: Database, store: ObjectStore, run_id: UUID, expires_after: int | None = None) -> None:
        self._database, self._store, self._run_id = database, store, run_id
        self._files = Files(database, store)
        self._expires_after = expires_after

    async def write(
        self, status: Status, total: int, counts: tuple[int, int], unanswered: AsyncIterator[tuple[int, str]] | None
    ) -> Results:
        """Both files, each if it holds anything. ``counts``: completed and failed lines on record.

        ``unanswered``: numbers and ids of the lines that the batch's window was too short for.
        """
        completed, failed = counts
        results = Results(status=status, total=total, completed=completed, failed=total - completed)
        if status == "cancelled":
            results.failed = failed
        if completed:
            results.output_file_id = await self._file("output", self._answered(good=True))
        if failed or (unanswered is not None and total > completed):
            results.error_file_id = await self._file("error", self._refused(unanswered))
        return results

    async def _file(self, kind: str, lines: AsyncIterator[bytes]) -> str:
        name = f"batch_{self._run_id.hex}_{kind}.jsonl"
        before = select(FileRow.id).where(FileRow.filename == name, FileRow.purpose == PURPOSE, FileRow.state == READY)
        async with self._database.session() as session:
            if found := await session.scalar(before.limit(1)):
                return found
        expires_at = datetime.now(UTC) + timedelta(seconds=self._expires_after) if self._expires_after else None
        return (await self._files.create(lines, name, PURPOSE, expires_at)).id

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
                answer = Answer.model_validate(unit.result)
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
