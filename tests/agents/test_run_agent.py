"""run_agent and consume_result on the SDK's scripted model: both kinds of result, interruptions, sessions."""

from typing import Any

import pytest
from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelProvider,
    MultiProvider,
    RunConfig,
    RunResult,
    RunResultStreaming,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from agents.decorators import input_guardrail
from agents.guardrail import GuardrailFunctionOutput
from agents.testing import ScriptedModel, assistant_message, function_call

from timestep import InterruptionException, TimestepError, consume_result, run_agent
from timestep.agents.record.sessions import open_session
from timestep.database.engine import Database
from timestep.errors import NotFoundError, UsageError

set_tracing_disabled(True)
both = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture
def done() -> list[str]:
    return []


def script(*steps: Any) -> ScriptedModel:
    """Answers one step after the other: a text, or a call."""
    return ScriptedModel([[assistant_message(step) if isinstance(step, str) else step] for step in steps])


def clerk(done: list[str], *steps: Any, needs_approval: bool = True) -> Agent[Any]:
    """An agent whose model follows the steps; its tool notes each call."""

    @function_tool(needs_approval=needs_approval)
    def send(what: str) -> str:
        done.append(what)
        return f"sent {what}"

    model = script(*(steps or [function_call("send", {"what": "a"}, call_id="c1"), "all sent"]))
    return Agent(name="clerk", model=model, tools=[send])


@both
async def test_a_run_ends_with_the_sdks_own_result(stream: bool, done: list[str]) -> None:
    result = await run_agent(clerk(done, needs_approval=False), "go", stream=stream)
    assert isinstance(result, RunResultStreaming if stream else RunResult)
    assert await consume_result(result) is result
    assert (result.final_output, done) == ("all sent", ["a"])
    assert (await consume_result(result)).final_output == "all sent"  # again does no harm


@both
async def test_a_run_config_may_be_a_dictionary_as_with_the_sdks_runner(stream: bool, done: list[str]) -> None:
    config = {"workflow_name": "w", "tracing_disabled": True}
    result = await run_agent(clerk(done, needs_approval=False), "go", stream=stream, run_config=config)
    assert (await consume_result(result)).final_output == "all sent"


@both
async def test_a_run_that_waits_returns_and_goes_on_from_its_state(stream: bool, done: list[str]) -> None:
    agent = clerk(done)
    result = await consume_result(await run_agent(agent, "go", stream=stream))
    assert [item.name for item in result.interruptions] == ["send"] and not done
    state = result.to_state()
    state.approve(result.interruptions[0])
    result = await consume_result(await run_agent(agent, state, None, stream))
    assert (result.final_output, done) == ("all sent", ["a"])


@both
async def test_where_the_caller_asks_an_interruption_is_raised(stream: bool, done: list[str]) -> None:
    agent = clerk(done)
    with pytest.raises(InterruptionException, match="approval of 'send'") as caught:
        await consume_result(await run_agent(agent, "go", stream=stream, on_interruption="raise"))
    assert isinstance(caught.value, TimestepError)
    (item,) = caught.value.interruptions
    caught.value.state.reject(item, rejection_message="no")
    assert (await consume_result(await run_agent(agent, caught.value.state))).final_output == "all sent"
    assert done == []


async def test_consuming_may_ask_otherwise(done: list[str]) -> None:
    with pytest.raises(InterruptionException):
        await consume_result(await run_agent(clerk(done), "go"), "raise")
    streamed = await run_agent(clerk(done), "go", stream=True, on_interruption="raise")
    assert (await consume_result(streamed, "return")).interruptions


@both
async def test_items_and_options_reach_the_run(stream: bool) -> None:
    seen: list[Any] = []

    model = script("fine")
    agent = Agent[Any](name="a", model=model, instructions=lambda context, _: seen.append(context.context) or "Be.")
    items: Any = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    await consume_result(await run_agent(agent, items, stream=stream, context={"user": "k"}))
    assert seen == [{"user": "k"}]
    assert [item["content"] for item in model.calls[0].input] == ["one", "two"]  # type: ignore[index]


@both
async def test_too_many_turns_are_the_sdks_error(stream: bool, done: list[str]) -> None:
    steps = [function_call("send", {"what": "a"}, call_id=f"c{n}") for n in range(12)]
    agent = clerk(done, *steps, needs_approval=False)
    with pytest.raises(MaxTurnsExceeded):
        await consume_result(await run_agent(agent, "go", stream=stream, max_turns=3))
    assert len(done) == 3


@both
async def test_a_run_that_fails_before_its_first_event_fails(stream: bool) -> None:
    @input_guardrail
    async def never(*_: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    agent = Agent[Any](name="a", model=script("fine"), input_guardrails=[never])
    with pytest.raises(InputGuardrailTripwireTriggered):
        await consume_result(await run_agent(agent, "go", stream=stream))
    with pytest.raises(NotFoundError, match="No model 'nowhere/x'"):
        await consume_result(await run_agent(Agent(name="b", model="nowhere/x"), "go", stream=stream))


async def test_what_cannot_be_meant(done: list[str]) -> None:
    with pytest.raises(UsageError, match="nothing to run on"):
        await run_agent(clerk(done), "")
    with pytest.raises(UsageError, match="'explode'"):
        await run_agent(clerk(done), "go", on_interruption="explode")  # type: ignore[arg-type]


class Scripts(ModelProvider):
    """Knows every name, and says it."""

    def get_model(self, model_name: str | None) -> ScriptedModel:
        return script(f"I am {model_name}")


async def test_where_models_are_found() -> None:
    agent = Agent[Any](name="a", model="scripts/one")
    assert (await run_agent(agent, "go", model_provider=Scripts())).final_output == "I am scripts/one"
    given = RunConfig(model_provider=Scripts(), tracing_disabled=True)
    assert (await run_agent(agent, "go", run_config=given)).final_output == "I am scripts/one"
    # A run config for other reasons: the SDK's own provider learns our prefixes, and keeps its own.
    plain = MultiProvider(openai_api_key="k")
    config = RunConfig(model_provider=plain)
    with pytest.raises(NotFoundError, match="No model 'scripts/one'"):
        await run_agent(agent, "go", run_config=config)
    assert config.model_provider is plain and plain.provider_map is None


@both
async def test_a_session_on_postgresql_holds_the_conversation(stream: bool, database: Database) -> None:
    session = await open_session(database, "talk")
    model = script("one", "two")
    agent = Agent[Any](name="a", model=model)
    await consume_result(await run_agent(agent, "first", session, stream))
    await consume_result(await run_agent(agent, "second", session, stream))
    assert model.calls[1].input[0]["content"] == "first"  # type: ignore[index,typeddict-item]
    assert len(model.calls[1].input) == 3 and len(await session.get_items()) == 4


async def test_an_approval_in_a_session_leaves_its_conversation_whole(done: list[str]) -> None:
    session = SQLiteSession("talk")
    agent = clerk(done)
    result = await run_agent(agent, "go", session)
    state = result.to_state()
    state.approve(state.get_interruptions()[0])
    await run_agent(agent, state, session)
    kinds = [item.get("type", item.get("role")) for item in await session.get_items()]
    assert kinds == ["user", "function_call", "function_call_output", "message"]
