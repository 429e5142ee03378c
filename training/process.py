"""One llama.cpp tool as a child process: its output line by line, and no way to outlive its parent.

Knows nothing about what the tool does. Progress lines end in a carriage return, so both it and the
newline end a line here.
"""

import asyncio
import ctypes
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

TAIL_CHARACTERS = 4000
_LINE_END = re.compile(rb"[\r\n]+")
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Finished(NamedTuple):
    """How a tool ended: its exit code (negative: the signal that killed it) and its last output."""

    code: int
    tail: str

    @property
    def ending(self) -> str:
        """The ending in words, such as ``was killed by SIGKILL`` or ``exited with code 1``."""
        if self.code >= 0:
            return f"exited with code {self.code}"
        try:
            return f"was killed by {signal.Signals(-self.code).name}"
        except ValueError:
            return f"was killed by signal {-self.code}"


async def run_tool(
    command: Sequence[str | Path],
    *,
    on_line: Callable[[str], None] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
) -> Finished:
    """Run ``command`` to its end and return how it ended; its whole output also goes to ``log``.

    Cancelling the caller, or an error raised by ``on_line``, kills the tool with all it started.
    Raises FileNotFoundError or PermissionError where the tool can't be started.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *map(str, command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent if _libc else None,
        )
    )
    try:
        # Shielded: asyncio ends a start that is cancelled by killing the tool, but not what it has started by then.
        process = await asyncio.shield(starting)
        tail = await _read(process, on_line, log)
        return Finished(await process.wait(), tail)
    finally:
        process = await starting
        if process.returncode is None:
            _kill_group(process)
            await asyncio.shield(process.wait())


async def _read(process: asyncio.subprocess.Process, on_line: Callable[[str], None] | None, log: Path | None) -> str:
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=200)
    rest = b""
    with log.open("ab") if log else open(os.devnull, "ab") as kept:  # noqa: ASYNC230, PTH123
        while chunk := await process.stdout.read(1 << 16):
            kept.write(chunk)
            *lines, rest = _LINE_END.split(rest + chunk)
            for line in filter(None, (raw.decode("utf-8", "replace").strip() for raw in lines)):
                tail.append(line)
                if on_line:
                    on_line(line)
    tail.append(rest.decode("utf-8", "replace").strip())
    return "\n".join(filter(None, tail))[-TAIL_CHARACTERS:]


def _kill_group(process: asyncio.subprocess.Process) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except ProcessLookupError:
        pass


def _die_with_parent() -> None:
    """In the child, before it runs the tool: ask Linux to kill it when its parent ends (prctl(2))."""
    pr_set_pdeathsig = 1
    assert _libc is not None
    _libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
