"""The default agent's tools: a calculator, a clock, and files in a workspace of its own in storage."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agents import FunctionTool, RunContextWrapper, function_tool
from simpleeval import SimpleEval

from storage.store import ObjectStore
from timestep.errors import NotFoundError, UsageError

MAX_FILE_CHARACTERS = 20_000

_key: ContextVar[str | None] = ContextVar("idempotency_key", default=None)


def idempotency_key() -> str:
    """The key of the tool call that is running: the same when a call is made again, 64 hexadecimal digits.

    A call that a crash cut in the middle is made again, at least once: a tool that passes this key on to where it
    acts, or looks whether it has acted under it, acts once.

    Raises:
        UsageError: no tool of a step is running.
    """
    key = present_key()
    if key is None:
        raise UsageError("An idempotency key is of a tool's call, and none is running within a step.")
    return key


def present_key() -> str | None:
    """As :func:`idempotency_key`; None where no tool of a step is running."""
    return _key.get()


@contextmanager
def keyed(key: str) -> Iterator[None]:
    """Within, the call that runs has this key; a tool's thread gets it too."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


@dataclass
class StepContext:
    """What a step hands to its tools: its id, its agent, and a workspace (a prefix in storage)."""

    step_id: str
    agent: str
    store: ObjectStore
    workspace: str

    @property
    def idempotency_key(self) -> str:
        """See :func:`idempotency_key`."""
        return idempotency_key()

    def key(self, path: str) -> str:
        """Storage key of a workspace file; paths that lead out of the workspace are refused."""
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path:
            raise UsageError(f"Path '{path}' is outside the workspace. Give a relative path, such as 'notes.txt'.")
        return f"{self.workspace}/{PurePosixPath(*parts)}"


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: For example (17 + 4) * 3
    """
    value = SimpleEval(functions={"abs": abs, "round": round, "min": min, "max": max}).eval(expression)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value)


def clock(timezone: str = "UTC") -> str:
    """Tell the current date and time.

    Args:
        timezone: For example Europe/Paris
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UsageError(f"No timezone '{timezone}'. Use a name such as 'UTC' or 'Europe/Paris'.") from error
    return datetime.now(zone).isoformat(timespec="seconds")


async def read_file(context: RunContextWrapper[StepContext], path: str) -> str:
    """Read a file of the workspace.

    Args:
        path: For example notes.txt
    """
    text = (await context.context.store.get(context.context.key(path))).decode("utf-8", "replace")
    if len(text) > MAX_FILE_CHARACTERS:
        return f"{text[:MAX_FILE_CHARACTERS]}\n[{len(text) - MAX_FILE_CHARACTERS} more characters]"
    return text


async def write_file(context: RunContextWrapper[StepContext], path: str, text: str) -> str:
    """Write a file of the workspace.

    Args:
        path: For example notes.txt
        text: The file's content
    """
    reference = await context.context.store.put(context.context.key(path), text.encode(), content_type="text/plain")
    return f"Wrote {reference.size} bytes to {path}."


async def list_files(context: RunContextWrapper[StepContext]) -> str:
    """List the files of the workspace."""
    prefix = f"{context.context.workspace}/"
    names = [entry.key.removeprefix(prefix) async for entry in context.context.store.list(prefix)]
    return json.dumps(sorted(names))


def _plain(schema: Any) -> Any:
    """A JSON schema without titles, which repeat the names and cost prompt tokens."""
    if isinstance(schema, dict):
        return {k: _plain(v) for k, v in schema.items() if not (k == "title" and isinstance(v, str))}
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema


def _tell_the_model(_: RunContextWrapper[Any], error: Exception) -> str:
    """A tool's failure is an answer that the model can act on."""
    sentence = str(error) if isinstance(error, UsageError | NotFoundError) else f"{type(error).__name__}: {error}"
    return f"Error: {sentence}"


def default_tools() -> list[FunctionTool]:
    """The default agent's tools, made anew."""
    tools = [
        function_tool(function, failure_error_function=_tell_the_model, use_docstring_info=True)
        for function in (calculator, clock, read_file, write_file, list_files)
    ]
    for tool in tools:
        tool.params_json_schema = _plain(tool.params_json_schema)
    return tools
