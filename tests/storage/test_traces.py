"""Traces are found by agent and time."""

from datetime import UTC, datetime, timedelta, timezone

from storage.store import ObjectStore
from storage.traces import TraceStore


async def test_traces_come_back_by_agent_and_time(local: ObjectStore) -> None:
    traces = TraceStore(local)
    start = datetime(2026, 11, 20, 22, 0, tzinfo=UTC)
    for hour in range(6):
        when = start + timedelta(hours=hour)
        trace = {"step_id": f"s{hour}", "started": when.isoformat(), "output": "schön"}
        reference = await traces.write(trace, agent="assistant", step_id=f"s{hour}", when=when)
        assert reference.key == f"traces/assistant/{when:%Y-%m-%d}/s{hour}.json"
        assert await traces.read(reference) == trace
    await traces.write({"step_id": "other"}, agent="assistant2", step_id="other", when=start)

    async def found(**window: datetime) -> list[str]:
        return [trace["step_id"] async for _, trace in traces.list("assistant", **window)]

    assert await found() == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert await found(since=start + timedelta(hours=3)) == ["s3", "s4", "s5"]
    assert await found(until=start + timedelta(hours=3)) == ["s0", "s1", "s2"]
    assert await found(since=start + timedelta(hours=1), until=start + timedelta(hours=2)) == ["s1"]


async def test_days_are_utc(local: ObjectStore) -> None:
    when = datetime(2026, 11, 20, 1, 0, tzinfo=timezone(timedelta(hours=5)))
    reference = await TraceStore(local).write({}, agent="a", step_id="s", when=when)
    assert reference.key == "traces/a/2026-11-19/s.json"
    assert [key async for key, _ in TraceStore(local).list("a", since=when - timedelta(days=1))] == [reference.key]
