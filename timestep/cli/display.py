"""A run's progress on the terminal: its state and a bar that come and go, its tasks and what it asks, which stay."""

import asyncio
import json
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import TaskRun
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from timestep.agents.record.approvals import Approvals, names
from timestep.agents.record.waiting import Kind, PendingCall
from timestep.database.engine import Database

# Of progress, where stderr is a log and not a terminal.
SECONDS_BETWEEN_LINES = 15.0
LONGEST_ARGUMENTS = 500  # characters; `timestep show` prints all
SHORT = 8  # digits of a step's id that say which is meant


class Display:
    """Follows one run; a context, in which the bar is shown."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), console=console, transient=True
        )
        self._row = self._bar.add_task("starting", total=None)
        self._printed = 0.0

    def __enter__(self) -> "Display":
        # Only where someone watches: a log gets the tasks' lines.
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def state(self, name: str) -> None:
        """The run has come into this state."""
        self._bar.update(self._row, description=name.lower())

    def progress(self, percent: float, text: str) -> None:
        """How far a training is."""
        self._bar.update(self._row, total=100, completed=percent, description=text)
        if not self.console.is_terminal and time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self.console.print(f"  {text}", style="dim")

    def task(self, task: TaskRun) -> None:
        """A unit of the run has ended."""
        seconds = task.total_run_time.total_seconds()
        state = task.state.name if task.state is not None and task.state.name else ""
        self.console.print(f"  {state.lower():<10} {escape(task.name)}  {seconds:.1f} s", style="dim")


class Waits:
    """Says what a suspended step waits for, and how to decide."""

    def __init__(
        self, client: PrefectClient, database_url: str | None, run_id: UUID, display: Display, home: Path | None
    ) -> None:
        self._client, self._run_id, self._display, self._home = client, run_id, display, home
        self._database = None if database_url is None else Database(database_url)
        self._telling: set[asyncio.Task[None]] = set()

    def state(self, name: str) -> None:
        """The run has come into this state."""
        self._display.state(name)
        if name == "Suspended":
            task = asyncio.ensure_future(self._tell())
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        """Let go of the database."""
        await asyncio.gather(*self._telling, return_exceptions=True)
        if self._database is not None:
            await self._database.close()

    async def _tell(self) -> None:
        step_id, console = str(self._run_id), self._display.console
        pending = [] if self._database is None else await Approvals(self._database, step_id).pending()
        lines = asked(pending, step_id[:SHORT], self._home)
        if self._database is None:
            lines = [f"  waits      see: timestep show {step_id[:SHORT]}"]
        for line in lines or ["  waits      for the steps before it in its session"]:
            console.print(line, markup=False, soft_wrap=True)


def asked(
    calls: Iterable[PendingCall], step: str, home: Path | None = None, longest: int = LONGEST_ARGUMENTS
) -> list[str]:
    """Lines that say what waits and, for each call, the command that decides of it."""
    lines, calls = [], list(calls)
    for call, name in zip(calls, names(calls), strict=True):
        arguments = call.arguments if len(call.arguments) <= longest else f"{call.arguments[:longest]}…"
        name = name if name.isprintable() else call.position
        where = f"{step} --call {shlex.quote(plain(name))}" + (f" --home {shlex.quote(str(home))}" if home else "")
        match call.kind:
            case Kind.QUESTION:
                said, command = f"asks       {call.agent}: {_question(call)}", f'answer {where} "…"'
            case Kind.APPROVAL:
                said = f"waits      {call.agent}: {call.tool}({arguments})"
                command = f'approve {where}   (or --reject "why")'
            case Kind.CUT:
                said = f"was cut    {call.agent}: {call.tool}({arguments}); it may have run"
                command = f"settle {where} --run-again   (or --result TEXT, --fail WHY)"
        lines += [f"  {plain(said)}", f"             timestep {command}"]
    return lines


def plain(text: str) -> str:
    """Text of a model's or of anybody else's as a terminal can show it to whoever decides.

    What would move the cursor, colour or turn around what stands beside it is spelled out, and lines that follow the
    first can't pass for ours.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    shown = ("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) for line in lines)
    return "\n           | ".join(shown)


def _question(call: PendingCall) -> str:
    try:
        return str(json.loads(call.arguments)["question"])
    except (ValueError, LookupError, TypeError):
        return call.arguments
