"""Runs whose events somebody listens to, within a step: live where a model is asked, whole where the record answers."""

from pathlib import Path
from typing import Any

import pytest
from agents import Agent, AgentHooks, Runner, function_tool
from openai.types.responses import ResponseCompletedEvent, ResponseTextDeltaEvent

from tests.agents.durable_agents import NamedModel
from tests.agents.durably import Killed, MemoryAttempts, MortalLedger, Told, executed, new_step, run
from tests.agents.openai_server import OpenAIServer, Reply, serving
from tests.scripted import PlannedModel
from timestep.agents.durable.run import CallPolicy


def listener(server: OpenAIServer, heard: list[Any]) -> Agent[Any]:
    """An agent whose tool listens to another agent's run."""
    inner = Agent(name="inner", model=server.model())

    @function_tool
    async def consult() -> str:
        result = Runner.run_streamed(inner, "go")
        heard.extend([event.data async for event in result.stream_events() if event.type == "raw_response_event"])
        return str(result.final_output)

    return Agent(name="outer", model=PlannedModel([[("consult", {})], "done"]), tools=[consult])


def words(heard: list[Any]) -> list[str]:
    return [event.delta for event in heard if isinstance(event, ResponseTextDeltaEvent)]


async def test_events_are_live_where_the_model_is_asked_and_one_where_the_record_answers() -> None:
    attempts = MemoryAttempts()
    heard: list[Any] = []
    with serving(Reply(("Hel", "lo"))) as server:
        agent = listener(server, heard)
        told = Told()
        # Dies at the end of the tool's call, after the run within it.
        with pytest.raises(Killed):
            await run(new_step(MortalLedger(await attempts.open(), at=6), events=told), agent)
        assert words(heard) == ["Hel", "lo"] and isinstance(heard[-1], ResponseCompletedEvent)
        assert [data["delta"] for data in told.of("output_text.delta")] == ["Hel", "lo"]
        heard.clear()
        step = new_step(await attempts.open(), attempt=2)
        await run(step, agent)
        assert [type(event) for event in heard] == [ResponseCompletedEvent]
        assert step.messages[-2]["content"] == "Hello"
        assert len(server.requests) == 1
        assert step.usage().input_tokens == 10 * 2 + 100


async def test_listeners_get_live_events_even_where_the_step_tells_nobody() -> None:
    heard: list[Any] = []
    with serving(Reply(("Hel", "lo"))) as server:
        step = new_step(await MemoryAttempts().open(), policy=CallPolicy(stream=False))
        await run(step, listener(server, heard))
    assert words(heard) == ["Hel", "lo"]


async def test_a_second_try_gives_listeners_its_end_alone() -> None:
    heard: list[Any] = []
    with serving(Reply(("Hal",), breaks=True), Reply(("Hel", "lo"))) as server:
        step = new_step(await MemoryAttempts().open())
        await run(step, listener(server, heard))
    assert words(heard) == ["Hal"]
    assert isinstance(heard[-1], ResponseCompletedEvent) and "Hello" in heard[-1].model_dump_json()


async def test_who_stops_listening_cancels_the_call() -> None:
    with serving(Reply(("Hel", "lo"), seconds=1)) as server:
        inner = Agent(name="inner", model=server.model())

        @function_tool
        async def consult() -> str:
            result = Runner.run_streamed(inner, "go")
            async for _ in result.stream_events():
                result.cancel()
            return "stopped"

        ledger = await MemoryAttempts().open()
        agent = Agent(name="outer", model=PlannedModel([[("consult", {})], "done"]), tools=[consult])
        step = new_step(ledger)
        assert (await run(step, agent)).final_output == "done"
        assert [call.position for call in step.calls] == ["outer/0", "outer/0/0", "outer/1"]


async def test_runs_that_hooks_start_have_a_place_of_their_own(tmp_path: Path) -> None:
    log, attempts = tmp_path / "log", MemoryAttempts()
    helper = Agent(name="helper", model=NamedModel("helper", ["noted"], log))

    class Hooks(AgentHooks[Any]):
        async def on_end(self, context: Any, agent: Any, output: Any) -> None:
            await Runner.run(helper, f"It said {output}.")

    agent = Agent(name="a", model=NamedModel("a", ["done"], log), hooks=Hooks())
    for attempt in (1, 2):
        step = new_step(await attempts.open(), attempt=attempt)
        await run(step, agent)
        assert [call.position.partition("#")[0] for call in step.calls] == ["a/0", "hook/"]
    assert executed(log) == {"model a after 0": 1, "model helper after 0": 1}


async def test_a_prompt_cache_key_of_the_sdks_making_changes_nothing() -> None:
    attempts = MemoryAttempts()

    class Cached(PlannedModel):
        keys: list[Any] = []  # noqa: RUF012

        def _supports_default_prompt_cache_key(self) -> bool:
            return True

        async def get_response(
            self, system_instructions: Any, input: Any, model_settings: Any, *_: Any, **__: Any
        ) -> Any:
            self.keys.append(model_settings.extra_args["prompt_cache_key"])
            return await super().get_response(system_instructions, input, model_settings)

        def __init__(self) -> None:
            super().__init__(["done"])

    model = Cached()
    inner = Agent(name="inner", model=model)

    @function_tool
    async def consult() -> str:
        return str((await Runner.run(inner, "go")).final_output)

    agent = Agent(name="outer", model=PlannedModel([[("consult", {})], "done"]), tools=[consult])
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=6)), agent)
    assert (await run(new_step(await attempts.open(), attempt=2), agent)).final_output == "done"
    assert len(model.keys) == 1
