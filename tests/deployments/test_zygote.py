"""The process that flow runs are forked from, without a Prefect server: what it forks is told to be something else."""

import subprocess
import sys
import threading

import pytest

from deployments.zygote import fork_zygote

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flow runs are forked on Linux alone")

# A worker in small: forks its zygote, then uses it. `run_module` stands for Prefect's engine.
WORKER = """
import asyncio, os, signal, sys, threading
from pathlib import Path
from deployments import zygote
zygote._warm_up = lambda: True
{engine}
zygote.runpy.run_module = engine
forks = zygote.fork_zygote()
async def main():
    environment = dict(os.environ, ANSWER="42")
    {body}
asyncio.run(main())
print("worker ends")
"""
PLAIN = "def engine(*_, **__): print(os.environ['ANSWER'], os.getcwd(), os.getpid() == os.getpgid(0), flush=True)"


def worker(body: str, engine: str = PLAIN) -> subprocess.CompletedProcess[str]:
    code = WORKER.format(engine=engine, body=body.replace("\n", "\n    "))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_a_flow_run_has_its_environment_folder_and_process_group() -> None:
    done = worker("process = await forks.start(environment, Path('/tmp'), quiet=False)\nprint(await process.wait())")
    assert done.stdout.splitlines() == ["42 /tmp True", "0", "worker ends"], done.stderr


def test_exit_codes_and_signals_come_back() -> None:
    engine = (
        "def engine(*_, **__): sys.exit(7) if os.environ['ANSWER'] == '7' else os.kill(os.getpid(), signal.SIGKILL)"
    )
    body = """
for answer in ("7", "9"):
    process = await forks.start(environment | {"ANSWER": answer}, Path("/tmp"), quiet=False)
    print(await process.wait())"""
    assert worker(body, engine).stdout.splitlines() == ["7", "-9", "worker ends"]


def test_what_runs_at_exit_runs() -> None:
    engine = (
        "def engine(*_, **__):\n    import atexit; atexit.register(print, 'at exit', flush=True); raise ValueError('x')"
    )
    done = worker("print(await (await forks.start(environment, Path('/tmp'), quiet=False)).wait())", engine)
    assert done.stdout.splitlines() == ["at exit", "1", "worker ends"]
    assert "ValueError: x" in done.stderr


HUNG = """
def engine(*_, **__):
    import atexit, threading, time
    atexit.register(print, 'at exit', flush=True)
    threading.Thread(target=time.sleep, args=[60]).start()
    {end}"""


@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("raise SystemExit(7)", 7), ("raise ValueError('x')", 1)])
def test_a_thread_that_hangs_does_not_keep_a_flow_run_from_its_end(end: str, code: int) -> None:
    body = "print(await asyncio.wait_for((await forks.start(environment, Path('/tmp'), quiet=False)).wait(), 20))"
    done = worker(body, HUNG.format(end=end))
    assert done.stdout.splitlines() == ["at exit", str(code), "worker ends"], done.stderr
    assert ("ValueError: x" in done.stderr) == (code == 1)


def test_flow_runs_overlap() -> None:
    engine = "def engine(*_, **__):\n    import time; time.sleep(1)"
    body = """
import time
begun = time.monotonic()
processes = [await forks.start(environment, Path("/tmp"), quiet=False) for _ in range(5)]
print([await process.wait() for process in processes], time.monotonic() - begun < 3)"""
    assert worker(body, engine).stdout.splitlines() == ["[0, 0, 0, 0, 0] True", "worker ends"]


def test_a_quiet_flow_run_prints_nothing() -> None:
    done = worker("print(await (await forks.start(environment, Path('/tmp'), quiet=True)).wait())")
    assert done.stdout.splitlines() == ["0", "worker ends"]


def test_random_numbers_differ_between_flow_runs() -> None:
    engine = (
        "import random, numpy.random\ndef engine(*_, **__): print(random.random(), numpy.random.rand(), flush=True)"
    )
    body = "for _ in range(2): await (await forks.start(environment, Path('/tmp'), quiet=False)).wait()"
    first, second, _ = worker(body, engine).stdout.splitlines()
    assert set(first.split()).isdisjoint(second.split())


def test_where_no_process_can_be_started_those_that_run_go_on() -> None:
    engine = """
def engine(*_, **__):
    import time
    time.sleep(1)
fork, forked = os.fork, []
def limited():
    # The zygote itself and its first flow run: the machine has room for no more.
    forked.append(None)
    if len(forked) == 3:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = limited
"""
    body = """
process = await forks.start(environment, Path("/tmp"), quiet=False)
try:
    await forks.start(environment, Path("/tmp"), quiet=False)
except OSError as error:
    print(error)
print(await process.wait(), await (await forks.start(environment, Path("/tmp"), quiet=False)).wait())"""
    done = worker(body, engine)
    assert done.stdout.splitlines() == [
        "No process can be started: [Errno 11] Resource temporarily unavailable",
        "0 0",
        "worker ends",
    ], done.stderr


def test_when_the_zygote_dies_its_flow_runs_are_ended_and_the_worker_learns_it() -> None:
    engine = "def engine(*_, **__):\n    import time; time.sleep(60)"
    body = """
import psutil
process = await forks.start(environment, Path("/tmp"), quiet=False)
psutil.Process(process.pid).parent().kill()
print(await process.wait(), await forks.is_usable())
try:
    await forks.start(environment, Path("/tmp"), quiet=False)
except ConnectionError as error:
    print(error)
await asyncio.sleep(0.2)
print(psutil.pid_exists(process.pid) and psutil.Process(process.pid).status() != "zombie")"""
    assert worker(body, engine).stdout.splitlines() == [
        "-9 False",
        "The process that starts flow runs has died.",
        "False",
        "worker ends",
    ]


SLEEPER = "def engine(*_, **__):\n    import time; time.sleep(20)"
START_GIVEN_UP = """
import psutil
ask = lambda: asyncio.create_task(forks.start(environment, Path("/tmp"), quiet=False))
first = await ask()
parent = psutil.Process(first.pid).parent()
parent.suspend()
given_up = ask()
while not forks._asked: await asyncio.sleep(0)
given_up.cancel()
await asyncio.wait([given_up])
"""


def test_a_start_that_is_given_up_leaves_no_flow_run_and_the_next_one_works() -> None:
    body = """
parent.resume()
last = await asyncio.wait_for(ask(), 10)
async with asyncio.timeout(10):
    while len(parent.children()) > 2: await asyncio.sleep(0.02)
print({child.pid for child in parent.children()} == {first.pid, last.pid})
last.signal_group(signal.SIGTERM)
first.signal_group(signal.SIGTERM)
print(await asyncio.wait_for(first.wait(), 10))"""
    done = worker(START_GIVEN_UP + body, SLEEPER)
    assert done.stdout.splitlines() == ["True", "-15", "worker ends"], done.stderr


def test_a_start_that_is_given_up_as_the_zygote_dies_does_not_hide_its_death() -> None:
    body = """
parent.kill()
print(await asyncio.wait_for(first.wait(), 10), await forks.is_usable())"""
    done = worker(START_GIVEN_UP + body, SLEEPER)
    assert done.stdout.splitlines() == ["-9 False", "worker ends"], done.stderr
    assert done.stderr == ""


def test_imports_that_leave_threads_behind_make_it_unusable() -> None:
    engine = PLAIN + "\nzygote._warm_up = lambda: False"
    assert worker("print(await forks.is_usable())", engine).stdout.splitlines() == ["False", "worker ends"]


def test_a_process_with_threads_is_not_forked() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert fork_zygote() is None
    finally:
        stop.set()
        thread.join()
