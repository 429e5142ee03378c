"""Queues that no process can hand on, on a real Prefect server: runs that were cancelled, deleted or woken in vain."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from sqlalchemy import text

from tests.server.stage import Stage, Step, call, staged
from timestep import runs
from timestep.agents.record.sessions import heads, join, repair_queues
from timestep.database.engine import Database


@pytest.fixture(scope="module")
def stage(postgres_url: str) -> Iterator[Stage]:
    with staged(postgres_url, "prefect") as stage:
        yield stage


class Queue:
    """One session's queue of steps, each in a state that the test gives it."""

    def __init__(self, client: PrefectClient, database: Database) -> None:
        self.client, self.database = client, database

    async def add(self, kind: StateType, name: str | None = None, key: str | None = None) -> Step:
        flow_id = await self.client.create_flow_from_name("step")
        deployment = await self.client.create_deployment(flow_id, name="step", enforce_parameter_schema=False)
        step = Step(self.client, self.database, (await self.client.create_flow_run_from_deployment(deployment)).id)
        await step.reach(kind, name, pause_key=key, pause_reschedule=kind is StateType.PAUSED)
        await join(self.database, "talk", step.name)
        return step

    async def waits_its_turn(self) -> Step:
        return await self.add(StateType.PAUSED, "Suspended", "turn-1")

    async def repair(self) -> list[str]:
        return await repair_queues(self.client, self.database, self.wake)

    async def wake(self, step_id: str) -> None:
        await runs.resume(self.client, UUID(step_id))

    async def first(self) -> list[str]:
        return [head.step_id for head in await heads(self.database)]

    async def state(self, step: Step) -> str:
        return str((await self.client.read_flow_run(step.id)).state_name)


@pytest.fixture
async def queue(stage: Stage) -> AsyncIterator[Queue]:
    database = Database(stage.database_url)
    await database.migrate()
    async with PrefectClient(api=stage.prefect_api) as client:
        queue = Queue(client, database)
        yield queue
        async with database.session() as session:
            await session.execute(text("delete from turns"))
    await database.close()


@pytest.mark.parametrize("end", [StateType.CANCELLED, StateType.FAILED, StateType.COMPLETED])
async def test_a_run_that_has_ended_gives_its_place_up(end: StateType, queue: Queue) -> None:
    await queue.add(end)
    await queue.add(end)
    second = await queue.waits_its_turn()
    third = await queue.waits_its_turn()
    assert await queue.repair() == [second.name]
    assert await queue.first() == [second.name]
    assert [await queue.state(step) for step in (second, third)] == ["Resuming", "Suspended"]
    assert await queue.repair() == []  # it is on its way


async def test_a_run_that_was_deleted_gives_its_place_up(queue: Queue) -> None:
    gone, second = await queue.add(StateType.RUNNING), await queue.waits_its_turn()
    await queue.client.delete_flow_run(gone.id)
    assert await queue.repair() == [second.name]


@pytest.mark.long
async def test_more_sessions_than_one_answer_of_the_server_holds(queue: Queue) -> None:
    first = await queue.add(StateType.RUNNING)
    deployment = (await queue.client.read_flow_run(first.id)).deployment_id
    assert deployment is not None
    for at in range(205):
        run = await queue.client.create_flow_run_from_deployment(deployment)
        await join(queue.database, f"talk {at}", str(run.id))
    assert await queue.repair() == []
    assert len(await queue.first()) == 206


async def test_a_wake_that_came_too_early_comes_again(queue: Queue) -> None:
    step = await queue.waits_its_turn()
    assert await queue.repair() == [step.name]
    assert await queue.state(step) == "Resuming"


@pytest.mark.parametrize("kind", [StateType.RUNNING, StateType.CRASHED, StateType.PENDING, StateType.SCHEDULED])
async def test_a_run_that_is_not_over_holds_its_session(kind: StateType, queue: Queue) -> None:
    step, second = await queue.add(kind), await queue.waits_its_turn()
    assert await queue.repair() == []
    assert (await queue.first(), await queue.state(second)) == ([step.name], "Suspended")


async def test_a_run_that_waits_for_a_person_is_left_alone(queue: Queue) -> None:
    step, second = await queue.add(StateType.PAUSED, "Suspended", "people-1"), await queue.waits_its_turn()
    await step.ask(call())
    assert await queue.repair() == []
    assert [await queue.state(one) for one in (step, second)] == ["Suspended", "Suspended"]


async def test_several_repair_at_once(queue: Queue) -> None:
    await queue.add(StateType.CANCELLED)
    second, third = await queue.waits_its_turn(), await queue.waits_its_turn()
    await asyncio.gather(*(queue.repair() for _ in range(4)))
    assert await queue.first() == [second.name]
    assert [await queue.state(step) for step in (second, third)] == ["Resuming", "Suspended"]
