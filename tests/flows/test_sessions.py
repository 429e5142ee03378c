"""Steps of one session through the running service: at the same time, and behind one that is cancelled."""

import asyncio

from storage.store import ObjectStore
from storage.traces import TraceStore
from tests.conftest import Service
from tests.flows.conftest import Steps
from tests.flows.test_waiting import suspended


async def test_steps_started_together_each_read_what_the_one_before_added(service: Service, steps: Steps) -> None:
    runs = [await steps.start(input=f"number {n}", agent="receiver", session_id="crowd") for n in range(5)]
    outputs = [await steps.output(await steps.finished(run)) for run in runs]
    store = TraceStore(ObjectStore.open(f"local://{service.home}/storage"))
    traces = [await store.read(output.artifacts["trace"]) for output in outputs]
    said = sorted(([message["content"] for message in trace["messages"]] for trace in traces), key=len)
    # Question and answer by turns, each step's conversation the beginning of the next one's.
    for number, conversation in enumerate(said):
        assert len(conversation) == 2 * (number + 1)
        assert conversation[:-2] == said[number - 1] if number else conversation[:-2] == []
        assert conversation[-1] == "received"
    assert sorted(said[-1][::2]) == [f"number {n}" for n in range(5)]


async def test_a_cancelled_step_lets_its_session_go_on(service: Service, steps: Steps) -> None:
    first, _ = await suspended(service, steps, agent="cleaner", session_id="dropped")
    second = await steps.start(input="hello", agent="receiver", session_id="dropped")
    async with asyncio.timeout(60):
        while (await steps.client.read_flow_run(second.id)).state_name != "Suspended":
            await asyncio.sleep(0.1)
    service.run("cancel", str(first.id))
    output = await steps.output(await steps.finished(second, 60))
    assert output.output == "received"
