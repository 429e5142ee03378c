"""Tools that the provider describes and this process executes: shells and custom tools. Each call is a unit too.

A tool whose actions can't be recorded one by one is refused by name: its actions would be repeated silently.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from agents import (
    Agent,
    ApplyPatchTool,
    ComputerTool,
    CustomTool,
    FunctionTool,
    LocalShellTool,
    ShellResult,
    ShellTool,
)
from agents.tool import Tool
from pydantic import BaseModel, TypeAdapter

from timestep.agents.durable.declarations import once, runs_once
from timestep.agents.durable.step import Run
from timestep.agents.durable.tool_calls import ToolCall
from timestep.errors import UsageError

_shell_result = TypeAdapter(ShellResult)


def local_tool(tool: Tool, agent: Agent[Any], run: Run) -> Tool:
    """A copy of a tool that is executed here, with its calls recorded; any other tool as it is.

    Raises:
        UsageError: a tool whose actions can't be recorded.
    """
    if isinstance(tool, ComputerTool | ApplyPatchTool):
        raise UsageError(
            f"Agent '{agent.name}' has the tool '{tool.name}', whose actions a step can't record. "
            "Give it a function tool that does the same."
        )
    if isinstance(tool, CustomTool):
        invoke = tool.on_invoke_tool

        async def on_invoke_tool(context: Any, text: str) -> Any:
            call = _Call(tool, agent, context.tool_call_id, text)
            return await call.recorded(run, lambda: invoke(context, text))

        return replace(tool, on_invoke_tool=on_invoke_tool)
    if isinstance(tool, LocalShellTool | ShellTool) and tool.executor is not None:
        execute: Any = tool.executor

        async def executor(request: Any) -> Any:
            item = request.data if isinstance(tool, LocalShellTool) else request.data.raw
            call_id = item["call_id"] if isinstance(item, dict) else item.call_id
            return await _Call(tool, agent, call_id, arguments_of(item)).recorded(run, lambda: execute(request))

        return replace(tool, executor=executor)
    return tool


def arguments_of(item: Any) -> str:
    """What a call asks for, as text: what a person is shown, and a decision is bound to."""
    raw = item.model_dump(mode="json", exclude_none=True) if isinstance(item, BaseModel) else dict(item)
    asked = next((raw[name] for name in ("arguments", "input", "action") if name in raw), raw)
    return asked if isinstance(asked, str) else json.dumps(asked)


@dataclass(frozen=True)
class _Call:
    """One call of such a tool, made as one of a function tool whose output is JSON that keeps failures apart."""

    tool: Any
    agent: Agent[Any]
    call_id: str
    arguments: str

    async def recorded(self, run: Run, execute: Callable[[], Any]) -> Any:
        """What ``execute`` returns, or raises; from the record where it had ended."""

        async def on_invoke_tool(*_: Any) -> Any:
            try:
                output = execute()
                output = await output if inspect.isawaitable(output) else output
            except Exception as error:
                # The SDK tells the model of it, and so must the record.
                return {"error": str(error)}
            if isinstance(output, ShellResult):
                return {"result": _shell_result.dump_python(output, mode="json")}
            # The SDK makes text of all else; and text is never taken for one of the two above.
            return output if isinstance(output, str) else str(output)

        function = FunctionTool(
            name=self.tool.name,
            description="",
            params_json_schema={},
            on_invoke_tool=on_invoke_tool,
            strict_json_schema=False,
            needs_approval=getattr(self.tool, "needs_approval", False) is not False,
        )
        if runs_once(self.tool):
            function = once(function)
        context = SimpleNamespace(tool_call_id=self.call_id, agent=self.agent, tool_call=None)
        output = await ToolCall(function, run, run.positions[self.call_id], context, self.arguments).answer()
        if isinstance(output, str):
            return output
        if "error" in output:
            raise RuntimeError(output["error"])
        return _shell_result.validate_python(output["result"])
