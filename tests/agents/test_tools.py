"""The default agent's tools on a real store: what they compute, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from agents import RunContextWrapper
from agents.tool_context import ToolContext

from storage.store import ObjectStore
from timestep.agents.tools import StepContext, default_tools


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return StepContext("step", "assistant", ObjectStore.open(f"local://{tmp_path}"), "workspaces/assistant")


async def call(context: StepContext, name: str, **arguments: Any) -> str:
    tool = next(tool for tool in default_tools() if tool.name == name)
    wrapper = RunContextWrapper(context)
    tool_context = ToolContext(
        wrapper.context, usage=wrapper.usage, tool_name=name, tool_call_id="1", tool_arguments=json.dumps(arguments)
    )
    return str(await tool.on_invoke_tool(tool_context, json.dumps(arguments)))


@pytest.mark.parametrize(
    ("expression", "value"), [("17*23", "391"), ("(1+2)**3", "27"), ("7/2", "3.5"), ("6/3", "2"), ("abs(-3)", "3")]
)
async def test_calculator(context: StepContext, expression: str, value: str) -> None:
    assert await call(context, "calculator", expression=expression) == value


@pytest.mark.parametrize("expression", ["1/0", "9**9**9**9", "__import__('os')", "open('/etc/passwd')", "", "1+"])
async def test_calculator_refuses_without_harm(context: StepContext, expression: str) -> None:
    assert (await call(context, "calculator", expression=expression)).startswith("Error: ")


async def test_clock_knows_timezones_and_refuses_others(context: StepContext) -> None:
    assert (await call(context, "clock", timezone="UTC")).endswith("+00:00")
    for name in ("Mars/Base", "../../etc/passwd", ""):
        assert "No timezone" in await call(context, "clock", timezone=name)


async def test_files_are_written_listed_and_read(context: StepContext) -> None:
    assert await call(context, "list_files") == "[]"
    assert await call(context, "write_file", path="notes/a.txt", text="grüße") == "Wrote 7 bytes to notes/a.txt."
    assert json.loads(await call(context, "list_files")) == ["notes/a.txt"]
    assert await call(context, "read_file", path="notes/a.txt") == "grüße"
    assert "No object" in await call(context, "read_file", path="nothing.txt")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "", "..\\x"])
async def test_files_stay_in_the_workspace(context: StepContext, path: str) -> None:
    assert "outside the workspace" in await call(context, "read_file", path=path)
    assert "outside the workspace" in await call(context, "write_file", path=path, text="x")


def test_schemas_are_small_and_strict() -> None:
    for tool in default_tools():
        assert "title" not in json.dumps(tool.params_json_schema)
        assert tool.params_json_schema["additionalProperties"] is False
