"""Shells and custom tools, which the SDK executes here: their calls are units like those of functions."""

import json
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ApplyPatchTool,
    CustomTool,
    LocalShellTool,
    ModelResponse,
    RunConfig,
    Runner,
    ShellCallOutcome,
    ShellCommandOutput,
    ShellResult,
    ShellTool,
    Usage,
)
from agents.tool import Tool
from openai.types.responses import ResponseCustomToolCall
from openai.types.responses.response_output_item import LocalShellCall, LocalShellCallAction

from tests.agents.durably import Killed, MemoryAttempts, MortalLedger, People, executed, new_step, run
from tests.scripted import PlannedModel, answer, append
from timestep.agents.durable.run import once
from timestep.agents.record.waiting import Decision, Verdict
from timestep.errors import UsageError

SHELL = {
    "type": "shell_call",
    "id": "sh_1",
    "call_id": "call_1",
    "status": "completed",
    "action": {"type": "exec", "commands": ["ls"]},
}


class Calls(PlannedModel):
    """Makes one call, then is done."""

    def __init__(self, call: Any) -> None:
        super().__init__(["done"])
        self.call = call

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
        called = any(str(item.get("type", "")).endswith("_output") for item in input if isinstance(item, dict))
        return ModelResponse(output=answer("done") if called else [self.call], usage=Usage(1), response_id=None)


def tools(log: Path, kind: str, **options: Any) -> tuple[Tool, Any]:
    async def custom(context: Any, text: str) -> str:
        append(log, f"tool {text}")
        return "ran"

    def local(request: Any) -> str:
        append(log, "tool ls")
        return "ran"

    def shell(request: Any) -> ShellResult:
        append(log, "tool ls")
        output = ShellCommandOutput(stdout="ran", outcome=ShellCallOutcome(type="exit", exit_code=0))
        return ShellResult(output=[output])

    if kind == "custom":
        call = ResponseCustomToolCall(call_id="call_1", input="ls", name="run", type="custom_tool_call")
        return CustomTool("run", "Run.", custom, **options), call
    if kind == "local_shell":
        action = LocalShellCallAction(command=["ls"], env={}, type="exec")
        return LocalShellTool(local), LocalShellCall(
            id="l", action=action, call_id="call_1", status="completed", type="local_shell_call"
        )
    from openai.types.responses import ResponseFunctionShellToolCall

    return ShellTool(shell, **options), ResponseFunctionShellToolCall.model_validate(SHELL)


@pytest.mark.parametrize("kind", ["custom", "local_shell", "shell"])
async def test_a_finished_call_is_not_repeated(kind: str, tmp_path: Path) -> None:
    log, attempts = tmp_path / "log", MemoryAttempts()
    tool, call = tools(log, kind)
    agent = Agent(name="a", model=Calls(call), tools=[tool])
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=5)), agent)
    step = new_step(await attempts.open(), attempt=2)
    result = await run(step, agent)
    assert result.final_output == "done"
    assert executed(log) == {"tool ls": 1}
    assert [call.position for call in step.calls] == ["a/0", "a/0/0", "a/1"]
    assert "ran" in json.dumps([item.to_input_item() for item in result.new_items], default=str)


@pytest.mark.parametrize("kind", ["custom", "shell"])
async def test_approvals_are_asked_for_with_what_would_run(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    tool, call = tools(log, kind, needs_approval=True)
    people = People({tool.name: Decision(verdict=Verdict.APPROVE)})
    await run(new_step(await MemoryAttempts().open(), decide=people), Agent(name="a", model=Calls(call), tools=[tool]))
    (asked,) = people.asked
    assert asked.position == "a/0/0" and "ls" in asked.arguments
    assert executed(log) == {"tool ls": 1}


@pytest.mark.parametrize("kind", ["custom", "local_shell", "shell"])
async def test_what_must_not_run_twice_waits_for_a_person_where_it_was_cut(kind: str, tmp_path: Path) -> None:
    log, attempts = tmp_path / "log", MemoryAttempts()
    tool, call = tools(log, kind)
    agent = Agent(name="a", model=Calls(call), tools=[once(tool)])  # type: ignore[type-var]
    with pytest.raises(Killed):
        await run(new_step(MortalLedger(await attempts.open(), at=4)), agent)
    people = People({tool.name: Decision(verdict=Verdict.RESULT, text="ran, says the log")})
    assert (await run(new_step(await attempts.open(), attempt=2, decide=people), agent)).final_output == "done"
    assert [asked.position for asked in people.asked] == ["a/0/0"]
    assert executed(log) == {"tool ls": 1}


async def test_a_failure_that_the_model_was_told_of_is_on_the_record(tmp_path: Path) -> None:
    tries: list[int] = []

    def broken(request: Any) -> str:
        tries.append(1)
        raise OSError("no shell today")

    _, call = tools(tmp_path / "log", "shell")
    attempts = MemoryAttempts()
    agent = Agent(name="a", model=Calls(call), tools=[ShellTool(broken)])
    for attempt in (1, 2):
        result = await run(new_step(await attempts.open(), attempt=attempt), agent)
        assert "no shell today" in json.dumps([item.to_input_item() for item in result.new_items], default=str)
    assert len(tries) == 1


@pytest.mark.parametrize("output", [{"error": "none found"}, {"result": {"output": []}}, {"a": 1}, ["x"], 5])
async def test_what_a_custom_tool_returns_is_told_as_the_sdk_does(output: Any) -> None:
    call = ResponseCustomToolCall(call_id="call_1", input="ls", name="run", type="custom_tool_call")

    async def invoke(context: Any, text: str) -> Any:
        return output

    agent = Agent(name="a", model=Calls(call), tools=[CustomTool("run", "Run.", invoke)])
    alone = await Runner.run(agent, "go", run_config=RunConfig(tracing_disabled=True))
    attempts = MemoryAttempts()
    for attempt in (1, 2):
        result = await run(new_step(await attempts.open(), attempt=attempt), agent)
        assert [item.to_input_item() for item in result.new_items] == [item.to_input_item() for item in alone.new_items]


async def test_a_tool_whose_actions_cannot_be_recorded_is_refused_by_name() -> None:
    agent = Agent(name="a", model=PlannedModel(["done"]), tools=[ApplyPatchTool(editor=None)])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Agent 'a' has the tool 'apply_patch'"):
        await run(new_step(await MemoryAttempts().open()), agent)
