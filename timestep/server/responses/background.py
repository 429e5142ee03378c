"""A response that is a step: its object is a view of the flow run, its stream a fold of the step's events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from timestep.agents.responses.events import Event, Narrator
from timestep.agents.responses.items import Item
from timestep.agents.responses.objects import ENDED, failed, skeleton
from timestep.agents.responses.request import AGENT
from timestep.agents.responses.told import StepFold, finished_tool
from timestep.errors import ConflictError, NotFoundError, ServiceUnavailableError
from timestep.server import ids
from timestep.server.records import Records
from timestep.server.responses.stored import Earlier, Stored

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from storage.store import ObjectStore

T = TypeVar("T")

PREFIX, KIND = "resp_", "response"
POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 1.0
AWAY_SECONDS = 60.0  # that a part of the service may be away before those who wait for a response are told
END_SECONDS = 30.0  # from a step's last event to its state in Prefect, at most
PRUNED_SECONDS = 3600.0  # after which the words of a step are only in its output


async def start(records: Records, body: dict[str, Any], earlier: Earlier) -> Stored:
    """Have a step answer the request. RateLimitError, ServiceUnavailableError: not now."""
    from timestep.agents import respond

    asked = respond.parameters(body, earlier.items, earlier.behind)
    run = await records.starts.start(records.client, "step/step", asked, tags=[respond.TAG])
    return await _view(records, run)


async def load(records: Records, name: str) -> Stored:
    """The response as its step stands. NotFoundError: there is none of that id."""
    return await _view(records, await _run(records, name))


async def cancel(records: Records, name: str) -> Stored:
    """Have its step stopped; one that has ended is left as it is."""
    from timestep import steps

    run = await _run(records, name)
    if (await _view(records, run)).response["status"] not in ENDED:
        with suppress(ConflictError):  # it ended just now
            await steps.cancel(records.client, records.database, run.id)
    stored = await load(records, name)
    # Its process, where it has one, takes a moment to end, and answers nothing any more.
    if stored.response["status"] not in ENDED:
        stored.response["status"] = "cancelled"
    return stored


async def delete(records: Records, store: ObjectStore, name: str) -> None:
    """Forget the step: its run, its units, its events, and its trace and result in storage.

    Raises:
        ConflictError: it did not end in time to be deleted.
        StorageError: what lies in storage can't be deleted; the step is there still.
    """
    from sqlalchemy import delete as delete_rows

    from timestep.database.models import EventRow, StepRow
    from timestep.steps.views import answering

    run = await _run(records, name)
    await cancel(records, name)
    try:
        async with asyncio.timeout(END_SECONDS):
            await ended(records, name)
    except TimeoutError:
        raise ConflictError(f"Response '{name}' is still being cancelled. Try again.") from None
    await _discard(records, store, run.id)
    async with answering(records.client):
        await records.client.delete_flow_run(run.id)
    async with records.database.session() as session:
        await session.execute(delete_rows(EventRow).where(EventRow.step_id == str(run.id)))
        await session.execute(delete_rows(StepRow).where(StepRow.id == str(run.id)))


async def _discard(records: Records, store: ObjectStore, run_id: UUID) -> None:
    """Delete what the step has in storage."""
    from storage.block import PREFIX as RESULTS
    from storage.traces import TraceStore
    from timestep.database.models import StepRow
    from timestep.steps import read

    run = await read(records.client, run_id)
    keys = []
    if (result := getattr(run.state and run.state.data, "storage_key", None)) is not None:
        keys.append(f"{RESULTS}/{result}")
    async with records.database.session() as session:
        if (row := await session.get(StepRow, str(run_id))) is not None:
            keys.append(TraceStore.key(str(run.parameters["agent"]), str(run_id), row.created_at))
    for key in keys:
        with suppress(NotFoundError):
            await store.delete(key)


def is_step(response: dict[str, Any]) -> bool:
    """Whether a step answers it, or did."""
    return bool(response["background"]) or str(response["model"]).startswith(AGENT)


async def narrate(records: Records, name: str, after: int | None) -> AsyncGenerator[Event]:
    """The response's events with sequence numbers above ``after``, as they come, to its end.

    They are the same whenever and wherever they are asked for, since they follow from the step's events.
    ServiceUnavailableError: Prefect's server, or the database, is away for too long.
    """
    run = await _patiently(lambda: _run(records, name))
    narrator = Narrator(_begun(run))
    since = -1 if after is None else after
    async with aclosing(_narrated(records, run, narrator)) as events:
        async for event in events:
            if event["sequence_number"] > since:
                yield event
    last = narrator.state()
    told = last["sequence_number"]
    if told < since or (told == since and _long_ago(narrator.response)):
        last["sequence_number"] = since + 1  # there were more events before it than can be told now
    if last["sequence_number"] > since:
        yield last


async def _narrated(records: Records, run: FlowRun, narrator: Narrator) -> AsyncGenerator[Event]:
    """All events but the last, which ``narrator`` knows then."""
    from timestep import steps

    async def over() -> dict[str, Any] | None:
        return await steps.ended(records.client, run.id)

    yield narrator.state("created")
    yield narrator.state("queued")
    fold = StepFold(narrator)
    async with aclosing(records.feed.watch(str(run.id), 0, over)) as happened:
        async for one in happened:
            for event in fold.events(one):
                yield event
            if finished_tool(one):
                for event in await _called(records, run, fold, str(one.position)):
                    yield event
    stored = await ended(records, ids.object_id(PREFIX, run.id))
    for event in fold.rest(stored.response["output"]):
        yield event
    narrator.response = stored.response


async def _called(records: Records, run: FlowRun, fold: StepFold, position: str) -> list[Event]:
    call = await _patiently(lambda: _made(records, run, position))
    return [] if call is None else fold.called(position, call)


async def _made(records: Records, run: FlowRun, position: str) -> Item | None:
    """The call of a tool at ``position`` with what came back, from the step's record; None where it lies elsewhere."""
    from timestep.agents.respond import made_call
    from timestep.database.models import UnitRow

    turn, _, index = position.rpartition("/")
    async with records.database.session() as session:
        asked = await session.get(UnitRow, (str(run.id), turn))
        answered = await session.get(UnitRow, (str(run.id), position))
    if asked is None or answered is None or not asked.result or not answered.result:
        return None
    calls = [item for item in asked.result["response"]["output"] if item.get("type") == "function_call"]
    if not index.isdigit() or int(index) >= len(calls):
        return None
    return made_call(calls[int(index)], answered.result.get("output"), str(run.parameters["agent"]))


async def ended(records: Records, name: str) -> Stored:
    """The response once Prefect knows of its end, which is a moment after the step's last event.

    Raises:
        NotFoundError: it was deleted meanwhile.
        ServiceUnavailableError: Prefect's server is away for too long.
    """
    pause = POLL_SECONDS
    while True:
        stored = await _patiently(lambda: load(records, name))
        if stored.response["status"] in ENDED:
            return stored
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_POLL_SECONDS)


async def _patiently(read: Callable[[], Awaitable[T]]) -> T:
    """What ``read`` gives, once Prefect's server and the database let it. Raises as it does, a while later."""
    until = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return await read()
        except ServiceUnavailableError:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(LONGEST_POLL_SECONDS)


def _long_ago(response: dict[str, Any]) -> bool:
    at: float = response["completed_at"] or response["created_at"]
    return time.time() - at > PRUNED_SECONDS


async def _run(records: Records, name: str) -> FlowRun:
    from timestep.agents import respond
    from timestep.steps import read

    try:
        run = await read(records.client, ids.run_id(PREFIX, name, KIND))
    except NotFoundError:
        raise NotFoundError(KIND, name) from None
    # The request of a step that was started in another way was never checked.
    if respond.TAG not in run.tags or not (run.parameters.get("inference") or {}).get("request"):
        raise NotFoundError(KIND, name)
    return run


def _begun(run: FlowRun) -> dict[str, Any]:
    from timestep.agents import respond

    asked = respond.of_step(run.parameters["inference"]["request"])
    created = run.created.timestamp() if run.created else 0.0
    return skeleton(asked, ids.object_id(PREFIX, run.id), created, "queued")


async def _view(records: Records, run: FlowRun) -> Stored:
    from timestep import runs
    from timestep.agents import respond
    from timestep.agents.types import StepOutput
    from timestep.steps import StepStatus
    from timestep.steps.views import error_of, status_of

    body = run.parameters["inference"]["request"]
    begun = _begun(run)
    status = status_of(run, [])
    if status is StepStatus.SUCCEEDED:
        output = StepOutput.model_validate(await runs.result(run, records.storage_url))
        completed = run.end_time.timestamp() if run.end_time else None
        begun = respond.response(body, output, begun["created_at"], completed)
    elif status is StepStatus.FAILED:
        begun = failed(begun, await error_of(run, records.storage_url) or "The step failed.")
    elif status is StepStatus.CANCELLED:
        begun["status"] = "cancelled"
    elif status is not StepStatus.NOT_STARTED:
        begun["status"] = "in_progress"
    return Stored(begun, body["input"])
