"""Traces: what a step said, called and used, one JSON object per step, found by agent and day."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any

from storage.references import Reference
from storage.store import ObjectStore

PREFIX = "traces"


class TraceStore:
    """Traces in an object store, as ``traces/<agent>/<YYYY-MM-DD>/<step_id>.json`` (days in UTC)."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @staticmethod
    def key(agent: str, step_id: str, when: datetime) -> str:
        """Where the trace of a step lies that started at ``when`` (with a time zone)."""
        return f"{PREFIX}/{agent}/{when.astimezone(UTC):%Y-%m-%d}/{step_id}.json"

    async def write(self, trace: dict[str, Any], *, agent: str, step_id: str, when: datetime) -> Reference:
        """Stores the trace of a step that started at ``when`` (with a time zone); again replaces it.

        What is no JSON is stored as its text, and half a surrogate pair, which UTF-8 has not, as ``?``.
        """
        text = json.dumps(trace, ensure_ascii=False, default=str)
        key = self.key(agent, step_id, when)
        return await self._store.put(key, text.encode(errors="replace"), "application/json")

    async def read(self, what: str | Reference) -> dict[str, Any]:
        """The trace under a key or Reference."""
        trace: dict[str, Any] = json.loads(await self._store.get(what))
        return trace

    async def list(
        self, agent: str, since: datetime | None = None, until: datetime | None = None
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Keys and traces of an agent by day, of steps that started at ``since`` or later and before ``until``.

        A trace without a time of start counts as started at its day's midnight (UTC).
        """
        async for found in self._store.list(f"{PREFIX}/{agent}/"):
            day = date.fromisoformat(found.key.split("/")[-2])
            if (since and day < since.astimezone(UTC).date()) or (until and day > until.astimezone(UTC).date()):
                continue
            trace = await self.read(found.key)
            started = _started(trace, day)
            if (since is None or started >= since) and (until is None or started < until):
                yield found.key, trace


def _started(trace: dict[str, Any], day: date) -> datetime:
    started = datetime.fromisoformat(trace.get("started") or day.isoformat())
    return started if started.tzinfo else started.replace(tzinfo=UTC)
