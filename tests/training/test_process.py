"""Child processes: their lines, their end, and that none outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from training.process import run_tool


async def test_a_carriage_return_ends_a_line_too() -> None:
    lines: list[str] = []
    finished = await run_tool(["printf", r"one\rtwo\nthree"], on_line=lines.append)
    assert (finished.code, lines, finished.tail) == (0, ["one", "two"], "one\ntwo\nthree")


async def test_an_ending_is_told_in_words() -> None:
    assert (await run_tool(["sh", "-c", "exit 3"])).ending == "exited with code 3"
    assert (await run_tool(["sh", "-c", "kill -9 $$"])).ending == "was killed by SIGKILL"


async def test_the_whole_output_goes_to_the_log(tmp_path: Path) -> None:
    finished = await run_tool(["sh", "-c", "seq 100000; echo end >&2"], log=tmp_path / "log")
    assert (tmp_path / "log").read_text().endswith("100000\nend\n")
    assert len(finished.tail) <= 4000 and finished.tail.endswith("end")


async def test_cancelling_kills_the_tool_and_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = ["sh", "-c", f"sleep 300 & echo $! $$ > {pids}; wait"]
    running = asyncio.create_task(run_tool(command))
    while not pids.exists() or not pids.read_text().strip():
        await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await _all_gone(map(int, pids.read_text().split()))


async def test_cancelling_at_the_start_kills_what_the_tool_has_started_by_then(tmp_path: Path) -> None:
    for number in range(20):
        pids = tmp_path / str(number)
        running = asyncio.create_task(run_tool(["sh", "-c", f"sleep 300 & echo $! $$ > {pids}; wait"]))
        while not pids.exists() or not pids.read_text().strip():
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await _all_gone(map(int, pids.read_text().split()))


async def test_an_error_of_the_reader_kills_the_tool() -> None:
    def refuse(line: str) -> None:
        raise ValueError(line)

    start = time.monotonic()
    with pytest.raises(ValueError, match="bad"):
        await run_tool(["sh", "-c", "echo bad; sleep 300"], on_line=refuse)
    assert time.monotonic() - start < 30


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's own")
async def test_a_killed_parent_leaves_no_tool_behind() -> None:
    program = (
        "import asyncio; from training.process import run_tool\n"
        "asyncio.run(run_tool(['sh', '-c', 'echo $$; exec sleep 300'], on_line=lambda line: print(line, flush=True)))"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        os.kill(parent.pid, signal.SIGKILL)
    assert await _all_gone([child])


async def _all_gone(pids: object) -> bool:
    remaining = list(pids)  # type: ignore[call-overload]
    for _ in range(1500):
        remaining = [pid for pid in remaining if psutil.pid_exists(pid) and _runs(pid)]
        if not remaining:
            return True
        await asyncio.sleep(0.02)
    return False


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
