"""Finding and ending what carries a mark."""

import os
import subprocess
import sys
import time
from pathlib import Path

from deployments import instance
from tests.deployments.conftest import is_running, wait_for


def start(mark: str, code: str = "import time; time.sleep(60)") -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, instance.VARIABLE: mark})
    wait_for(lambda: process.pid in {member.pid for member in instance.members(mark)}, 10)
    return process


def test_only_processes_with_the_mark_are_ended(tmp_path: Path) -> None:
    ours, other_start = instance.new_mark(tmp_path), instance.new_mark(tmp_path)
    first, second = start(ours), start(other_start)
    try:
        assert instance.end_all(ours) == 1
        assert first.wait(5) != 0
        assert is_running(second.pid)
        # A new start on the home ends what any earlier one left.
        assert instance.end_all(instance.home_mark(tmp_path)) == 1
        second.wait(5)
    finally:
        for process in (first, second):
            process.kill()


def test_what_ignores_the_request_is_killed_after_the_grace(tmp_path: Path) -> None:
    mark = instance.new_mark(tmp_path)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", deaf], env={**os.environ, instance.VARIABLE: mark}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    begun = time.monotonic()
    instance.end_all(mark, grace=0.5)
    assert process.wait(5) == -9
    assert 0.5 <= time.monotonic() - begun < 5


def test_children_inherit_the_mark(tmp_path: Path) -> None:
    mark = instance.new_mark(tmp_path)
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parent = start(mark, code)
    wait_for(lambda: len(list(instance.members(mark))) == 2, 10)
    assert instance.end_all(mark) == 2
    parent.wait(5)
