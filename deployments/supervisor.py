"""Keeps processes running: starts them, waits until they are ready, restarts those that die, ends them.

Knows nothing of what the programs are. Each child has a log file of its own and a session of its own, so
that a Ctrl-C in the terminal reaches the parent alone, which then ends the children in order.
"""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from deployments.state import ChildState
from timestep.errors import TimestepError

Report = Callable[[str], None]

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: a child that says a restart can't help
BACKOFF_FIRST, BACKOFF_MOST = 0.5, 30.0  # seconds before a restart, doubled each time
STEADY_SECONDS = 15.0  # having run this long, which is past its start, a child is forgiven its earlier restarts
START_ATTEMPTS = 3  # exits before the first readiness that make the whole start fail
LOG_LIMIT = 20 << 20  # bytes; a longer log is kept once under another name when its child starts


@dataclass(frozen=True)
class Program:
    """What to run and how to tell that it is ready. ``ready`` gets the process id; it must not raise."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    ready: Callable[[int], Awaitable[bool]]
    cwd: Path
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: int = int(getattr(signal, "SIGKILL", signal.SIGTERM))  # sent by Linux when the parent dies
    user: int | None = None
    group: int | None = None
    stdin_pipe: bool = False  # whether the end of its standard input is what ends it, instead of the signal
    start_seconds: float = 120.0


@dataclass
class Child:
    """One program under supervision."""

    program: Program
    log: Path
    report: Report
    state: ChildState = field(default_factory=ChildState)
    process: asyncio.subprocess.Process | None = None
    stopping: bool = False

    def __post_init__(self) -> None:
        self.first_ready: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.first_ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._begun = time.monotonic()

    async def supervise(self) -> None:
        """Run the program until stopped; a start that fails is reported by ``first_ready``."""
        while not self.stopping:
            started = time.monotonic()
            end = await self._live()
            if self.stopping:
                return
            if time.monotonic() - started > STEADY_SECONDS:
                self.state.restarts = 0
            if not self.first_ready.done() and (end == EXIT_CONFIG or self.state.restarts + 1 >= START_ATTEMPTS):
                self.first_ready.set_exception(TimestepError(self._failure(end)))
                return
            delay = min(BACKOFF_FIRST * 2**self.state.restarts, BACKOFF_MOST)
            self.state.restarts += 1
            self.report(f"{self.program.name} ended ({describe_exit(end)}); starting it again in {delay:g} s.")
            await asyncio.sleep(delay)

    async def _live(self) -> int | OSError:
        """Run the process once: its exit code, or why it could not be made."""
        try:
            self.process = await self._spawn()
        except OSError as error:
            return error
        self.state.pid = self.process.pid
        watching = asyncio.create_task(self._watch_readiness(self.process.pid))
        code = await self.process.wait()
        watching.cancel()
        self.state.pid, self.state.ready = None, False
        return code

    async def stop(self, seconds: float) -> None:
        """End the process: asked first, killed after ``seconds``."""
        self.stopping = True
        if self.process is None or self.process.returncode is not None:
            return
        if self.process.stdin is not None:
            self.process.stdin.close()
        else:
            with suppress(ProcessLookupError):
                self.process.send_signal(self.program.stop_signal)
        try:
            await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            self.report(f"{self.program.name} did not end in {seconds:g} s; killed.")
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        program = self.program
        with open_log(self.log) as log:
            return await asyncio.create_subprocess_exec(
                *program.command,
                env=dict(program.environment),
                cwd=program.cwd,
                stdin=subprocess.PIPE if program.stdin_pipe else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **isolation(program.death_signal, program.user, program.group),
            )

    async def _watch_readiness(self, pid: int) -> None:
        start = time.monotonic()
        while not await self.program.ready(pid):
            if not self.first_ready.done() and time.monotonic() - start > self.program.start_seconds:
                self.first_ready.set_exception(TimestepError(self._failure(None)))
            await asyncio.sleep(0.05)
        self.state.ready = True
        if self.first_ready.done():
            self.report(f"{self.program.name} is ready again.")
        else:
            self.first_ready.set_result(time.monotonic() - self._begun)

    def _failure(self, end: int | OSError | None) -> str:
        said = "nothing was logged"
        with suppress(OSError, IndexError):
            said = self.log.read_text(errors="replace").strip().splitlines()[-1].strip()
        if end == EXIT_CONFIG:
            return said
        why = describe_exit(end) if end is not None else f"not ready after {self.program.start_seconds:g} s"
        return f"{self.program.name} does not start ({why}): {said[-500:]} Log: {self.log}"


class Supervisor:
    """The children of one service: started by `start`, running until `stop`."""

    def __init__(self, log_dir: Path, report: Report) -> None:
        self._log_dir, self._report = log_dir, report
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.children: dict[str, Child] = {}

    def start(self, program: Program) -> Child:
        """Start a program; await ``child.first_ready`` for the seconds that took, or the error."""
        child = Child(program, self._log_dir / f"{program.name}.log", self._report)
        self.children[program.name] = child
        self._tasks[program.name] = asyncio.create_task(child.supervise())
        return child

    async def stop(self, names: Iterable[str], seconds: float) -> None:
        """End these children at the same time, each within ``seconds``; unknown names are passed over."""
        children = [self.children[name] for name in names if name in self.children]
        for child in children:
            child.stopping = True
        await asyncio.gather(*(child.stop(seconds) for child in children))
        for child in children:
            self._tasks[child.program.name].cancel()
        await asyncio.gather(*(self._tasks[child.program.name] for child in children), return_exceptions=True)


def describe_exit(code: int | OSError) -> str:
    """A process's exit in words: `exit code 1`, `signal SIGKILL`; or why it could not be made."""
    if isinstance(code, OSError):
        return f"not started: {code.strerror}" + (f": '{code.filename}'" if code.filename else "")
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


def open_log(path: Path) -> IO[bytes]:
    """The log for appending; a very long one is put aside first."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def isolation(death_signal: int, user: int | None = None, group: int | None = None) -> dict[str, Any]:
    """Arguments of `subprocess` for a child in a session of its own that, on Linux, dies with its parent."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    arguments: dict[str, Any] = {"start_new_session": True}
    if user is not None:
        arguments |= {"user": user, "group": group, "extra_groups": []}
    if sys.platform == "linux":
        # The C library is loaded here, in the parent: between fork and exec there's only the call itself.
        import ctypes

        prctl = ctypes.CDLL(None).prctl
        arguments["preexec_fn"] = lambda: prctl(1, death_signal)  # PR_SET_PDEATHSIG
    return arguments
