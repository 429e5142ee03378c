"""A tool as it really runs within its unit: its timeout, and further tries where it was declared idempotent."""

import asyncio
import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agents import FunctionTool
from agents.exceptions import ModelBehaviorError, ToolTimeoutError
from agents.tool import (
    default_tool_timeout_error_message,
    maybe_invoke_function_tool_failure_error_function,
    set_function_tool_failure_error_function,
)

from timestep.agents.durable.declarations import retries
from timestep.agents.durable.step import Scope
from timestep.agents.record.lease import unblocked
from timestep.errors import NotFoundError, UsageError

GRACE = 2.0  # seconds for a cancelled tool to clean up; a thread can't be cancelled and is left behind
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds between tries
# Failures that another try can't mend: the arguments, or what they name.
_FINAL = (ModelBehaviorError, UsageError, NotFoundError)
# The SDK's note on a call's context that the model gets its default sentence for a failure.
_FAILURE_HANDLED = "_function_tool_default_failure_handled"


def failure_handled(context: Any, note: bool = False) -> bool:
    """Whether what the call returned is the SDK's own sentence for a failure; ``note`` that it is."""
    if note:
        setattr(context, _FAILURE_HANDLED, True)
    return bool(getattr(context, _FAILURE_HANDLED, False))


@dataclass
class ToolTries:
    """The tries of one call; ``scope`` makes the place of the runs that one try starts.

    ``seconds`` is the timeout of each try where the tool has none, None for no end.
    """

    tool: FunctionTool
    context: Any
    arguments: str
    scope: Callable[[], Scope]
    seconds: float | None

    def __post_init__(self) -> None:
        self.seconds = self.tool.timeout_seconds or self.seconds

    async def output(self) -> Any:
        """What the tool returned, or what the model is told of its failure.

        Raises:
            Whatever the tool raises, where its author wants failures raised.
        """
        left, wait = retries(self.tool), _FIRST_WAIT
        try:
            if left == 0:
                return await self._once(self.tool)
            open_tool = copy.copy(self.tool)
            set_function_tool_failure_error_function(open_tool, None)  # raises instead of telling the model
            while True:
                try:
                    return await self._once(open_tool)
                except Exception as error:
                    if left == 0 or isinstance(error, _FINAL):
                        return await self._told(error)
                left -= 1
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
        except ToolTimeoutError as error:
            return await self._late(error)

    async def _once(self, tool: FunctionTool) -> Any:
        # A new scope for each try: the runs of the one before are answered from the record.
        scope = self.scope()
        with unblocked(scope.step.step_id, self.seconds, f"a call of tool '{tool.name}'"):
            return await self._timed(tool, scope)

    async def _timed(self, tool: FunctionTool, scope: Scope) -> Any:
        with scope.entered():
            if self.seconds is None:
                return await tool.on_invoke_tool(self.context, self.arguments)
            task = asyncio.ensure_future(tool.on_invoke_tool(self.context, self.arguments))
        # A failure after the call was given up is nobody's.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            done, _ = await asyncio.wait({task}, timeout=self.seconds)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task}, timeout=GRACE)
            raise
        if done:
            return task.result()
        task.cancel()
        await asyncio.wait({task}, timeout=GRACE)
        raise ToolTimeoutError(tool_name=self.tool.name, timeout_seconds=self.seconds)

    async def _told(self, error: Exception) -> Any:
        if isinstance(error, ToolTimeoutError):
            raise error
        told = await maybe_invoke_function_tool_failure_error_function(
            function_tool=self.tool, context=self.context, error=error
        )
        if told is None:
            raise error
        return told

    async def _late(self, error: ToolTimeoutError) -> Any:
        """As the SDK does at a tool's timeout."""
        if self.tool.timeout_behavior == "raise_exception" or self.seconds is None:
            raise error
        if self.tool.timeout_error_function is None:
            failure_handled(self.context, note=True)
            return default_tool_timeout_error_message(tool_name=self.tool.name, timeout_seconds=self.seconds)
        told = self.tool.timeout_error_function(self.context, error)
        return await told if inspect.isawaitable(told) else told
