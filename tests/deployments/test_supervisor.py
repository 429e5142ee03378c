"""Children that die, don't start, or don't want to end: small real processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.supervisor import EXIT_CONFIG, START_ATTEMPTS, Program, Supervisor, describe_exit, open_log
from tests.deployments.conftest import is_running
from timestep.errors import TimestepError

SLEEP = "import time; time.sleep(60)"


@asynccontextmanager
async def supervisor(folder: Path) -> AsyncIterator[tuple[Supervisor, list[str]]]:
    lines: list[str] = []
    running = Supervisor(folder, lines.append)
    try:
        yield running, lines
    finally:
        await running.stop(list(running.children), 1)


def program(folder: Path, code: str, ready: Callable[[int], Awaitable[bool]] | None = None, **options: Any) -> Program:
    async def at_once(_pid: int) -> bool:
        return True

    environment = {"PATH": os.environ["PATH"]}
    return Program("part", [sys.executable, "-c", code], environment, ready or at_once, cwd=folder, **options)


async def never(_pid: int) -> bool:
    return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def test_a_child_that_dies_is_started_again_later_each_time(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as (running, lines):
        child = running.start(program(tmp_path, SLEEP))
        await child.first_ready
        for restarts in (1, 2):
            os.kill(child.state.pid or 0, signal.SIGKILL)
            await until(lambda n=restarts: child.state.restarts == n and child.state.ready)
    assert [line for line in lines if "starting it again" in line] == [
        "part ended (signal SIGKILL); starting it again in 0.5 s.",
        "part ended (signal SIGKILL); starting it again in 1 s.",
    ]


async def test_a_start_that_keeps_failing_is_an_error_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as (running, lines):
        child = running.start(program(tmp_path, "raise ValueError('no such thing')", never))
        with pytest.raises(TimestepError, match=r"does not start \(exit code 1\): ValueError: no such thing Log: "):
            await child.first_ready
    assert len(lines) == 2


async def test_a_program_that_can_not_be_executed_is_an_error_after_as_many_attempts(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as (running, lines):
        child = running.start(replace(program(tmp_path, SLEEP), command=["/absent/program"]))
        why = r"does not start \(not started: No such file or directory: '/absent/program'\): nothing was logged Log: "
        with pytest.raises(TimestepError, match=why):
            await asyncio.wait_for(child.first_ready, 10)
    assert len(lines) == START_ATTEMPTS - 1


async def test_a_child_that_can_not_be_executed_for_a_while_comes_back(tmp_path: Path) -> None:
    python, moved = tmp_path / "python", tmp_path / "moved"
    python.symlink_to(sys.executable)
    async with supervisor(tmp_path) as (running, lines):
        child = running.start(replace(program(tmp_path, SLEEP), command=[str(python), "-c", SLEEP]))
        await child.first_ready
        python.rename(moved)
        os.kill(child.state.pid or 0, signal.SIGKILL)
        await until(lambda: child.state.restarts == 2)
        assert (child.state.pid, child.state.ready) == (None, False)
        moved.rename(python)
        await until(lambda: child.state.ready)
    assert f"part ended (not started: No such file or directory: '{python}'); starting it again in 1 s." in lines


async def test_a_child_that_names_the_users_mistake_is_not_tried_again(tmp_path: Path) -> None:
    code = f"import sys; print('Agents file is bad.'); sys.exit({EXIT_CONFIG})"
    async with supervisor(tmp_path) as (running, lines):
        child = running.start(program(tmp_path, code, never))
        with pytest.raises(TimestepError, match=r"^Agents file is bad\.$"):
            await child.first_ready
    assert lines == []


async def test_a_child_that_never_gets_ready_is_an_error(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as (running, _):
        child = running.start(program(tmp_path, SLEEP, never, start_seconds=0.2))
        with pytest.raises(TimestepError, match=r"not ready after 0\.2 s"):
            await child.first_ready


async def test_a_child_that_ignores_its_signal_is_killed(tmp_path: Path) -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('armed', flush=True); {SLEEP}"
    async with supervisor(tmp_path) as (running, lines):
        child = running.start(program(tmp_path, code))
        await until(lambda: "armed" in _read(tmp_path / "part.log"))
        pid = child.state.pid or 0
        await running.stop(["part"], 0.3)
        assert not is_running(pid)
    assert lines == ["part did not end in 0.3 s; killed."]


async def test_a_stopped_child_is_not_started_again(tmp_path: Path) -> None:
    async with supervisor(tmp_path) as (running, lines):
        child = running.start(program(tmp_path, SLEEP))
        await child.first_ready
        await running.stop(["part"], 5)
        await asyncio.sleep(0.7)
        assert child.state.pid is None
    assert lines == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process when its parent dies")
async def test_without_any_watchdog_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path.cwd())!r})
from tests.deployments.test_supervisor import *
async def main():
    child = Supervisor(Path({str(tmp_path)!r}), print).start(program(Path({str(tmp_path)!r}), SLEEP))
    await child.first_ready
    print(child.state.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not is_running(pid))


def test_a_long_log_is_put_aside_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.supervisor.LOG_LIMIT", 10)
    log = tmp_path / "part.log"
    log.write_bytes(b"twenty bytes of a log")
    with open_log(log) as stream:
        stream.write(b"new")
    assert log.read_bytes() == b"new"
    assert (tmp_path / "part.log.1").read_bytes() == b"twenty bytes of a log"


def test_exits_are_told_in_words() -> None:
    assert [describe_exit(code) for code in (0, 3, -9)] == ["exit code 0", "exit code 3", "signal SIGKILL"]
