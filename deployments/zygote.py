"""Flow runs that start in milliseconds: a process that has imported everything, and forks for each of them.

The zygote is forked from the worker right after the imports, while there is one thread and no event loop, and it
stays so: a fork of it is as good as a new interpreter. Zygote and worker talk JSON lines over a socket pair:
``{"warm"}`` says that the imports are done; ``{"id", "environment", "cwd", "quiet"}`` asks for a flow run, which
``{"id", "pid"}`` and later ``{"pid", "code"}`` answer; ``{"id", "error"}`` where it can't be forked.
"""

import asyncio
import atexit
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

HANGING_SECONDS = 0.5  # for threads to end by themselves at the end of a flow run
FLUSH_SECONDS = 2.0  # to send logs and events where threads did not

# What a flow run imports only when it is under way.
LATE_MODULES = (
    "flows.learn",
    "prefect.engine",
    "prefect.task_engine",
    "prefect._internal.metrics",
    "prefect._vendor.croniter",
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "libcloud.storage.drivers.local",
)


class ForkedProcess:
    """A flow run's process: as much of `asyncio.subprocess.Process` as its worker needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and to those it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def end(self, code: int) -> None:
        """Record the exit."""
        self.returncode = code
        self._ended.set()


class Zygote:
    """The worker's side."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._asked: dict[int, asyncio.Future[ForkedProcess]] = {}
        self._running: dict[int, ForkedProcess] = {}
        self._count = 0
        self._warm: asyncio.Future[None] | None = None

    async def is_usable(self) -> bool:
        """Whether flow runs can be forked: waits for the end of the imports; False from the zygote's death on."""
        if self._warm is None:
            self._warm = asyncio.get_running_loop().create_future()
            reader, self._writer = await asyncio.open_connection(sock=self._connection)
            self._listening = asyncio.create_task(self._listen(reader))
        await asyncio.wait([self._warm])
        return not self._listening.done() and not self._warm.cancelled()

    async def start(self, environment: dict[str, str], cwd: Path, *, quiet: bool) -> ForkedProcess:
        """Fork a flow run. ConnectionError when the zygote has died, OSError where the machine lets it start none."""
        if not await self.is_usable():
            raise ConnectionError("The process that starts flow runs has died.")
        self._count += 1
        answer: asyncio.Future[ForkedProcess] = asyncio.get_running_loop().create_future()
        self._asked[self._count] = answer
        request = {"id": self._count, "environment": environment, "cwd": str(cwd), "quiet": quiet}
        self._writer.write(json.dumps(request).encode() + b"\n")
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(_end_unwanted)
            raise

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        assert self._warm is not None
        with suppress(ConnectionError):  # how its death looks when it left a request unread
            async for line in reader:
                message = json.loads(line)
                if "warm" in message:
                    self._warm.set_result(None)
                elif "error" in message:
                    self._asked.pop(message["id"]).set_exception(OSError(message["error"]))
                elif "id" in message:
                    process = self._running[message["pid"]] = ForkedProcess(message["pid"])
                    self._asked.pop(message["id"]).set_result(process)
                else:
                    self._running.pop(message["pid"]).end(message["code"])
        self._warm.cancel()
        for answer in self._asked.values():
            answer.set_exception(ConnectionError("The process that starts flow runs has died."))
        # Nobody can tell their exit any more: end them, so that "crashed" is true.
        for process in self._running.values():
            process.signal_group(signal.SIGKILL)
            process.end(-signal.SIGKILL)


def _end_unwanted(answer: asyncio.Future[ForkedProcess]) -> None:
    """End a flow run whose start was given up before the answer came: nobody waits for it."""
    if answer.exception() is None:
        answer.result().signal_group(signal.SIGKILL)


def fork_zygote() -> Zygote | None:
    """Fork the zygote from this process. None where there is no fork, or threads already run (fork isn't safe then).

    In the zygote, and in each flow run, this call doesn't return: it raises SystemExit at their end.
    """
    if sys.platform in ("win32", "darwin") or threading.active_count() > 1:
        return None
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        raise SystemExit(_serve(theirs))
    theirs.close()
    return Zygote(ours)


def _serve(connection: socket.socket) -> int:
    """Fork for each request until the worker is gone, then wait for the flow runs that go on without it."""
    if not _warm_up():
        return 1
    _tell(connection, {"warm": True})
    waking, wake = os.pipe()
    for end in (waking, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: set[int] = set()
    pending = b""
    while connection.fileno() >= 0 or children:
        watched = [waking] if connection.fileno() < 0 else [waking, connection.fileno()]
        readable, _, _ = select.select(watched, [], [])
        if waking in readable:
            with suppress(BlockingIOError):
                os.read(waking, 4096)
            _reap(connection, children)
        if connection.fileno() in readable:
            received = b""
            with suppress(ConnectionError):  # how the worker's death looks when it left an answer unread
                received = connection.recv(1 << 16)
            if not received:
                connection.close()
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                request = json.loads(line)
                try:
                    pid = os.fork()
                except OSError as error:  # no process or memory left: those that run shall go on
                    _tell(connection, {"id": request["id"], "error": f"No process can be started: {error}"})
                    continue
                if pid == 0:
                    connection.close()
                    os.close(waking)
                    return _run_flow(request, wake)
                with suppress(OSError):  # in both, so that whoever comes first makes the group
                    os.setpgid(pid, pid)
                children.add(pid)
                _tell(connection, {"id": request["id"], "pid": pid})
    return 0


def _warm_up() -> bool:
    """Import what the worker itself has no use for. False if that left threads behind, which a fork would lose."""
    from prefect.plugins import load_prefect_collections
    from prefect.settings import get_current_settings

    for module in LATE_MODULES:
        with suppress(ImportError):  # private ones may move; the flow run imports what it needs
            importlib.import_module(module)
    load_prefect_collections()  # where a block is loaded, Prefect imports every collection that is installed
    # As the worker writes them to a flow run's environment, to see there whether any differs.
    os.environ.update(get_current_settings().to_environment_variables(exclude_unset=True))
    gc.freeze()  # keep the collector from writing to pages that forks share
    return threading.active_count() == 1


def _prefect_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith("PREFECT_") and not k.startswith("PREFECT__")}


def _reap(connection: socket.socket, children: set[int]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.discard(pid)
            _tell(connection, {"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(connection: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _run_flow(request: dict[str, Any], wake: int) -> int:
    """Be what `python -m prefect.engine` is in a new interpreter with this environment."""
    signal.set_wakeup_fd(-1)
    os.close(wake)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(OSError):
        os.setpgid(0, 0)
    changed = _prefect_settings(os.environ) != _prefect_settings(request["environment"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if request["quiet"]:
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
    if "numpy.random" in sys.modules:  # `random` sees to this itself
        sys.modules["numpy.random"].seed(random.getrandbits(32))

    if changed:
        from prefect.context import refresh_global_settings_context
        from prefect.logging.configuration import setup_logging

        refresh_global_settings_context()
        setup_logging()
    sys.argv = ["prefect.engine"]
    code: int | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that the module was imported before: it was meant to be
            runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        if _threads_hang():
            _end_now(code)
    return 0


def _threads_hang() -> bool:
    """Whether there are threads that Python would wait for, perhaps forever: a tool that was given up or cancelled."""
    deadline = time.monotonic() + HANGING_SECONDS
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return True
    return False


def _end_now(code: int | None) -> NoReturn:
    """The end of the process without its threads: what is to be sent to Prefect is sent, what runs at exit runs."""
    if code is None:  # an exception that no one caught
        traceback.print_exc()
    with suppress(Exception):
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for service in (APILogWorker, EventsWorker):
            service.drain_all(timeout=FLUSH_SECONDS)
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1 if code is None else code)
