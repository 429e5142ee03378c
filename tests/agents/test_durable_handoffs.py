"""What an author does at a handoff, in instructions and in guardrails: once, in time, and told to people by name."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    Handoff,
    RunContextWrapper,
    Runner,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    function_tool,
    handoff,
    input_guardrail,
    output_guardrail,
)

from tests.agents.durable_agents import agent, remember
from tests.agents.durably import CallPolicy, Killed, MemoryAttempts, MortalLedger, executed, new_step, run
from tests.scripted import PlannedModel, append
from timestep.agents.record.ledger import MemoryLedger
from timestep.agents.tools import idempotency_key
from timestep.errors import TimestepError

# The second agent reads the first one's call of the handoff as well.
LATER: Any = [[("x", {})], "done"]


async def test_a_handoffs_function_has_a_key_which_is_the_same_in_the_next_process() -> None:
    keys: list[str] = []

    async def note(context: RunContextWrapper[Any]) -> None:
        keys.append(idempotency_key())
        if len(keys) == 1:
            raise Killed

    second = Agent(name="second", model=PlannedModel(LATER))
    first = Agent(
        name="first", model=PlannedModel([[("transfer_to_second", {})]]), handoffs=[handoff(second, on_handoff=note)]
    )
    attempts = MemoryAttempts()
    with pytest.raises(Killed):
        await run(new_step(await attempts.open()), first)
    await run(new_step(await attempts.open(), attempt=2), first)
    assert len(keys) == 2 and len(set(keys)) == 1 and len(keys[0]) == 64


async def test_what_an_author_does_ends_in_time() -> None:
    async def hang(*_: Any) -> Any:
        await asyncio.sleep(20)

    second = Agent(name="second", model=PlannedModel(LATER))
    first = Agent(
        name="first", model=PlannedModel([[("transfer_to_second", {})]]), handoffs=[handoff(second, on_handoff=hang)]
    )
    with pytest.raises(TimestepError, match=r"The handoff of agent 'first' did not end within 0\.2 s"):
        await run(new_step(MemoryLedger("s"), policy=CallPolicy(tool_timeout=0.2)), first)
    slow = Agent(name="slow", model=PlannedModel(["done"]), instructions=hang)
    with pytest.raises(TimestepError, match=r"The instructions of agent 'slow' did not end within 0\.2 s"):
        await run(new_step(MemoryLedger("s"), policy=CallPolicy(tool_timeout=0.2)), slow)


@pytest.mark.parametrize("listed", [True, False])
async def test_a_handoff_made_by_hand_is_on_the_record(listed: bool, tmp_path: Path) -> None:
    log, keys, attempts = tmp_path / "log", set(), MemoryAttempts()
    second = agent(log, "second", [[("x", {})], [("remember", {"text": "a"})], "done"], tools=[remember(log)])

    async def hand_over(context: Any, arguments: str) -> Agent[Any]:
        append(log, "handed over")
        keys.add(idempotency_key())
        return second

    made = Handoff(
        tool_name="go", tool_description="", input_json_schema={}, on_invoke_handoff=hand_over, agent_name="second"
    )
    first = agent(log, "first", [[("go", {})]], handoffs=[made, *([second] if listed else [])])
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=8)), first)
    assert (await run(new_step(await attempts.open(), attempt=2), first)).final_output == "done"
    # Where nothing else leads to the agent, its function has to be asked again, which can tell by the key.
    assert executed(log)["handed over"] == (1 if listed else 2) and len(keys) == 1


@input_guardrail(name="no politics")
async def refuse(*_: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput("it is about an election", tripwire_triggered=True)


@output_guardrail(name="no numbers")
async def refuse_output(*_: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput({"digits": 3}, tripwire_triggered=True)


async def refuse_call(data: Any) -> ToolGuardrailFunctionOutput:
    return ToolGuardrailFunctionOutput.raise_exception("too long")


async def test_a_guardrail_that_refuses_is_named(tmp_path: Path) -> None:
    async def refused(sentence: str, **options: Any) -> None:
        first = agent(tmp_path / "log", "a", options.pop("plan", ["done"]), **options)
        with pytest.raises(TimestepError) as caught:
            await run(new_step(MemoryLedger("s")), first)
        assert str(caught.value) == sentence

    await refused("Guardrail 'no politics' refused the input: it is about an election", input_guardrails=[refuse])
    await refused("Guardrail 'no numbers' refused the output.", output_guardrails=[refuse_output])
    tool = remember(tmp_path / "log", tool_input_guardrails=[ToolInputGuardrail(refuse_call, name="short")])
    await refused(
        "Guardrail 'short' refused the arguments of a tool: too long",
        plan=[[("remember", {"text": "x"})], "done"],
        tools=[tool],
    )


async def test_a_guardrail_that_refuses_within_a_tool_is_named_too(tmp_path: Path) -> None:
    inner = Agent(name="inner", model=PlannedModel(["said"]), input_guardrails=[refuse])

    @function_tool(failure_error_function=None)
    async def consult() -> str:
        return str((await Runner.run(inner, "go")).final_output)

    outer = agent(tmp_path / "log", "outer", [[("consult", {})], "done"], tools=[consult])
    with pytest.raises(TimestepError, match="Guardrail 'no politics' refused the input"):
        await run(new_step(MemoryLedger("s")), outer)
