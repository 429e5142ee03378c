"""One agent for each thing of the SDK that a step has to survive; every real execution is a line in the log."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from agents import (
    Agent,
    GuardrailFunctionOutput,
    RunContextWrapper,
    Runner,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    function_tool,
    handoff,
    input_guardrail,
    output_guardrail,
)
from agents.tool import FunctionTool
from pydantic import BaseModel

from tests.scripted import Plan, PlannedModel, append
from timestep.agents.ask import ask_user
from timestep.agents.record.waiting import Decision, Verdict


def remember(log: Path, **options: Any) -> FunctionTool:
    def remember(text: str) -> str:
        append(log, f"tool {text}")
        return f"remembered {text}"

    return function_tool(remember, **options)


def agent(log: Path, name: str, plan: Plan, **options: Any) -> Agent[Any]:
    return Agent(name=name, model=NamedModel(name, plan, log), **options)


class NamedModel(PlannedModel):
    """Logs its agent with the turn."""

    def __init__(self, name: str, plan: Plan, log: Path) -> None:
        super().__init__(plan)
        self.name, self.path = name, log

    async def get_response(self, system_instructions: Any, input: Any, *more: Any, **named: Any) -> Any:
        response = await super().get_response(system_instructions, input, None, *more)
        outputs = 0 if isinstance(input, str) else sum(item.get("type") == "function_call_output" for item in input)
        append(self.path, f"model {self.name} after {outputs}")
        return response


def parallel(log: Path) -> Agent[Any]:
    """Two identical calls at once, then one more."""
    plan: Plan = [[("remember", {"text": "a"}), ("remember", {"text": "b"})], [("remember", {"text": "c"})], "done"]
    return agent(log, "parallel", plan, tools=[remember(log)])


def nested(log: Path) -> Agent[Any]:
    """An agent as a tool, called twice at the same time."""
    inner = agent(log, "inner", [[("remember", {"text": "deep"})], "deep done"], tools=[remember(log)])
    plan: Plan = [[("ask_inner", {"input": "x"}), ("ask_inner", {"input": "y"})], "done"]
    return agent(log, "outer", plan, tools=[inner.as_tool("ask_inner", "Ask.")])


def streamed(log: Path) -> Agent[Any]:
    """An agent as a tool whose events are listened to."""
    inner = agent(log, "inner", [[("remember", {"text": "deep"})], "deep done"], tools=[remember(log)])

    async def on_stream(event: Any) -> None:
        return

    tool = inner.as_tool("ask_inner", "Ask.", on_stream=on_stream)
    return agent(log, "outer", [[("ask_inner", {"input": "x"})], "done"], tools=[tool])


def twice(log: Path) -> Agent[Any]:
    """One tool that starts two runs of one agent, the second with what the first one said."""
    inner = agent(log, "inner", ["said"])

    @function_tool
    async def consult() -> str:
        first = await Runner.run(inner, "one")
        second = await Runner.run(inner, f"two after {first.final_output}")
        return f"{first.final_output} {second.final_output}"

    return agent(log, "outer", [[("consult", {})], "done"], tools=[consult])


def handed_over(log: Path) -> Agent[Any]:
    """Handoffs in a circle, by an agent and by a Handoff whose author is told of it."""

    def note(context: RunContextWrapper[Any]) -> None:
        append(log, "handoff noted")

    # Each agent reads the whole conversation, so its plan goes by the calls that both of them have made.
    here: Plan = [[("x", {})], [("remember", {"text": "here"})], [("transfer_to_first", {})]]
    second = agent(log, "second", here, tools=[remember(log)])
    there: Plan = [[("transfer_to_second", {})], [("x", {})], [("x", {})], "back: done"]
    first = agent(log, "first", there, handoffs=[handoff(second, on_handoff=note)])
    second.handoffs = [first]
    return first


def guarded(log: Path) -> Agent[Any]:
    """Guardrails on input, output and a tool, each of which asks a model; two of them have one name."""
    judge = agent(log, "judge", ["fine"])

    @input_guardrail(name="check")
    async def check_input(context: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        verdict = await Runner.run(judge, f"input {input}")
        return GuardrailFunctionOutput(verdict.final_output, tripwire_triggered=False)

    @input_guardrail(name="check")
    async def check_again(context: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        verdict = await Runner.run(judge, f"again {input}")
        return GuardrailFunctionOutput(verdict.final_output, tripwire_triggered=False)

    @output_guardrail(name="check")
    async def check_output(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        verdict = await Runner.run(judge, f"output {output}")
        return GuardrailFunctionOutput(verdict.final_output, tripwire_triggered=False)

    async def check_call(data: Any) -> ToolGuardrailFunctionOutput:
        await Runner.run(judge, f"call {data.context.tool_arguments}")
        return ToolGuardrailFunctionOutput.allow()

    tool = remember(log, tool_input_guardrails=[ToolInputGuardrail(check_call)])
    return agent(
        log,
        "guarded",
        [[("remember", {"text": "a"})], "done"],
        tools=[tool],
        input_guardrails=[check_input, check_again],
        output_guardrails=[check_output],
    )


def clocked(log: Path) -> Agent[Any]:
    """Instructions with a clock in them."""

    def instructions(context: Any, agent: Any) -> str:
        append(log, "instructions")
        return f"It is {datetime.now().isoformat()}."

    plan: Plan = [[("remember", {"text": "a"})], "done"]
    return agent(log, "clocked", plan, tools=[remember(log)], instructions=instructions)


class Answer(BaseModel):
    """A structured final output."""

    number: int


def structured(log: Path) -> Agent[Any]:
    """A final output of a type, after a tool whose output is one too."""

    def measure() -> list[int]:
        append(log, "tool measure")
        return [1, 2]

    plan: Plan = [[("measure", {})], '{"number": 3}']
    return agent(log, "structured", plan, tools=[function_tool(measure)], output_type=Answer)


def approved(log: Path) -> Agent[Any]:
    """A call that needs an approval, beside one that doesn't, and a question."""
    pay = remember(log, name_override="pay", needs_approval=True)
    plan: Plan = [
        [("pay", {"text": "paid"}), ("remember", {"text": "a"})],
        [("ask_user", {"question": "Sure?"})],
        "done",
    ]
    return agent(log, "payer", plan, tools=[pay, remember(log), ask_user])


def approved_below(log: Path) -> Agent[Any]:
    """Two agents as tools at once, each with a call that needs an approval after one that doesn't."""
    pay = remember(log, name_override="pay", needs_approval=True)
    plan: Plan = [[("remember", {"text": "1"})], [("pay", {"text": "2"})], [("pay", {"text": "3"})], "inner done"]
    inner = agent(log, "inner", plan, tools=[pay, remember(log)])
    calls: Plan = [[("ask_inner", {"input": "x"}), ("ask_inner", {"input": "y"})], "done"]
    return agent(log, "outer", calls, tools=[inner.as_tool("ask_inner", "Ask.")])


def approved_live(log: Path) -> Agent[Any]:
    """An agent as a tool whose events are listened to, with a call that needs an approval."""
    pay = remember(log, name_override="pay", needs_approval=True)
    plan: Plan = [[("remember", {"text": "1"})], [("pay", {"text": "2"})], "inner done"]
    inner = agent(log, "inner", plan, tools=[pay, remember(log)])

    async def on_stream(event: Any) -> None:
        return

    tool = inner.as_tool("ask_inner", "Ask.", on_stream=on_stream)
    return agent(log, "outer", [[("ask_inner", {"input": "x"})], "done"], tools=[tool])


ALL: list[Callable[[Path], Agent[Any]]] = [
    parallel,
    nested,
    streamed,
    twice,
    handed_over,
    guarded,
    clocked,
    structured,
    approved,
    approved_below,
    approved_live,
]
YES = {
    "pay": Decision(verdict=Verdict.APPROVE),
    "ask_user": Decision(verdict=Verdict.ANSWER, text="quite sure"),
}
