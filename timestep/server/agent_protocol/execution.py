"""Executing a step of a task: which input it has, the flow run that it is, and the wait for its end."""

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fastapi import Request

from timestep.errors import NotFoundError, UsageError
from timestep.models.disconnect import ClientGone, unless_gone
from timestep.server.agent_protocol import tasks
from timestep.server.agent_protocol.shapes import StepRequestBody
from timestep.server.agents import roster
from timestep.server.records import Records

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from sqlalchemy.ext.asyncio import AsyncSession

    from timestep.database.models import TaskRow, TaskStepRow

WAIT_SECONDS = 50.0  # less than the minute after which clients and proxies commonly give a request up
POLL_SECONDS = 0.1, 1.0  # at first, and at most
TAG = "agent_protocol"
CONTINUE = "Go on with the task."
NAME_LENGTH = 80


async def execute(
    request: Request, records: Records, task_id: str, asked: StepRequestBody, leaving: asyncio.Event
) -> str:
    """Id of the step that was asked for, when it has ended, waits for a person, or has taken too long to wait for.

    Raises:
        NotFoundError: no such task.
        UsageError: there is nothing to do.
        ServiceUnavailableError: Prefect's server or the database is away.
    """
    step_id = await _started(request, records, task_id, asked)
    # Nobody is there to be told of a client that left; the step goes on.
    with suppress(TimeoutError, ClientGone):
        async with asyncio.timeout(WAIT_SECONDS):
            await unless_gone(request, _settled(records, UUID(step_id), leaving))
    return step_id


async def _started(request: Request, records: Records, task_id: str, asked: StepRequestBody) -> str:
    """Starts a step, or finds the one that runs where no input asks for another."""
    from sqlalchemy import select

    from timestep.database.models import TaskStepRow

    agent = (await roster(request)).default
    async with records.database.session() as session:
        # Locked, so that of several requests at once each sees the steps of those before it.
        task = await tasks.find(session, task_id, lock=True)
        before = list(
            await session.scalars(
                select(TaskStepRow).where(TaskStepRow.task_id == task.id).order_by(TaskStepRow.number)
            )
        )
        newest = before[-1] if before else None
        if newest is not None and asked.input is None and not await _ended(records, newest):
            return newest.id
        text = await _input(records, task, newest, asked)
        run = await _run(session, records, task, len(before), {"input": text, "agent": agent, "session_id": task.id})
        session.add(_row(task, run, asked, text))
        return str(run.id)


async def _run(
    session: "AsyncSession", records: Records, task: "TaskRow", number: int, parameters: dict[str, Any]
) -> "FlowRun":
    """The flow run that is the task's step of this number.

    Its key is of the number: where a server was killed between making a run and noting it, the run is found again
    here, and noted before another is made.
    """
    while True:
        key = f"{task.id}-{number}"
        run = await records.starts.start(records.client, "step/step", parameters, idempotency_key=key, tags=[TAG])
        if run.parameters.get("input") == parameters["input"]:
            return run
        session.add(_row(task, run, StepRequestBody(), str(run.parameters.get("input"))))
        await session.flush()
        number += 1


async def _input(records: Records, task: "TaskRow", newest: "TaskStepRow | None", asked: StepRequestBody) -> str:
    """What the agent is told. UsageError: neither the task nor the step has an input."""
    parts = [asked.input, _shown(asked.additional_input)]
    if newest is None:
        parts = [task.input, _shown(task.additional_input), *parts]
    elif asked.input is None:
        parts = [await _again(records, newest) or CONTINUE, *parts]
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise UsageError("'input' is empty, and so is the task's. Say what is to be done.")
    return text


async def _again(records: Records, newest: "TaskStepRow") -> str | None:
    """The input of a step that did not succeed; None of one that did, or whose flow run was deleted."""
    from timestep import steps

    try:
        run = await steps.read(records.client, UUID(newest.id))
    except NotFoundError:
        return None
    return None if run.state is not None and run.state.is_completed() else str(run.parameters.get("input") or "")


def _shown(additional: dict[str, Any] | None) -> str | None:
    return json.dumps(additional, ensure_ascii=False) if additional else None


def _row(task: "TaskRow", run: "FlowRun", asked: StepRequestBody, text: str) -> "TaskStepRow":
    from timestep.database.models import TaskStepRow

    name = text.partition("\n")[0][:NAME_LENGTH]
    said = asked.input if asked.input is not None else text
    return TaskStepRow(id=str(run.id), task_id=task.id, name=name, input=said, additional_input=asked.additional_input)


async def _ended(records: Records, row: "TaskStepRow") -> bool:
    from timestep import steps

    return await steps.ended(records.client, UUID(row.id)) is not None


async def _settled(records: Records, step_id: UUID, leaving: asyncio.Event) -> None:
    """Until the step has ended or waits for a person, or this server is about to end."""
    from timestep import steps
    from timestep.agents.record.approvals import Approvals

    pause, longest = POLL_SECONDS
    while not leaving.is_set():
        if await steps.ended(records.client, step_id) is not None:
            return
        run = await steps.read(records.client, step_id)
        paused = run.state is not None and run.state.is_paused()
        if paused and await Approvals(records.database, str(step_id)).pending():
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(leaving.wait(), pause)
        pause = min(pause * 1.5, longest)
