"""The whole service on one machine: `up` starts and keeps it, `status` tells, `down` ends.

Order: PostgreSQL, then our tables, then everything else at once. Ended the other way round, so that a flow run
that is interrupted can still report to Prefect, and Prefect to its database.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import fasteners
import httpx
import psutil

from deployments import instance, prefect_server, preflight, service_key
from deployments.environment import detached_environment, service_environment
from deployments.postgres import embedded_postgres
from deployments.prefect_server import reachable
from deployments.state import ServiceState, Urls, load_state, state_path
from deployments.supervisor import Program, Report, Supervisor, describe_exit, isolation, open_log
from timestep.database.engine import Database
from timestep.errors import ConflictError, TimestepError, UsageError
from timestep.keys import check_listening
from timestep.settings import Settings, load_settings

OnReady = Callable[[ServiceState], None]
Ready = Callable[[int], Awaitable[bool]]

STOP_SECONDS = 8.5  # in all; what then still runs is killed
STOP_ORDER = {("worker", "http-server", "model-server"): 3.5, ("prefect-server",): 1.5, ("postgres",): STOP_SECONDS}
DOWN_SECONDS = 15.0
STAMP = len("2026-01-01 00:00:00 ")


async def up(settings: Settings, *, detach: bool = False, on_ready: OnReady | None = None) -> int:
    """Run the service until SIGINT or SIGTERM, or with ``detach`` return once it is ready. Returns the exit code.

    Raises ConflictError when a service runs on this home or a port is taken, UsageError, NotFoundError or
    ModelFileError for settings that can't be meant, TimestepError when a part doesn't start (its log is named).
    """
    preflight.make_home(settings)
    if load_state(settings) is not None:
        raise _already_running(settings)
    preflight.check_settings(settings)
    report = _reporter(settings)
    if detach:
        state = await _start_detached(settings, print)
        if on_ready is not None:
            on_ready(state)
        return 0
    lock = fasteners.InterProcessLock(settings.run_dir / "lock")
    if not lock.acquire(blocking=False):
        raise _already_running(settings)
    try:
        return await _Service(settings, report).run(on_ready)
    finally:
        lock.release()


def status(settings: Settings) -> ServiceState | None:
    """The service that runs on this home, ready or still starting, or None. UsageError: it's another user's."""
    return load_state(settings)


async def down(settings: Settings) -> bool:
    """End the service of this home and wait for its end. False when none runs; UsageError: it's another user's."""
    state = load_state(settings)
    if state is None:
        return False
    try:
        os.kill(state.pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError:
        raise UsageError(f"Process {state.pid} belongs to another user, who alone can end it.") from None
    deadline = time.monotonic() + DOWN_SECONDS
    while state.is_alive():
        if time.monotonic() > deadline:
            with suppress(psutil.Error):
                psutil.Process(state.pid).kill()  # the watchdog ends the rest
        await asyncio.sleep(0.05)
    return True


class _Service:
    """One start of the service."""

    def __init__(self, settings: Settings, report: Report) -> None:
        model_port = settings.model_port or free_port()
        self.settings = _with(
            settings,
            model_port=model_port,
            model_server_url=f"http://127.0.0.1:{model_port}",
            prefect_api_url=f"http://{reachable(settings.prefect_host)}:{settings.prefect_port}/api",
            service_key=service_key.kept(settings),
        )
        self.report = report
        self.mark = instance.new_mark(settings.home)
        self.supervisor = Supervisor(settings.log_dir, report)
        self.started = time.monotonic()

    async def run(self, on_ready: OnReady | None) -> int:
        """Start everything, wait for a signal, end everything."""
        stop = asyncio.Event()
        async with _signals(stop), httpx.AsyncClient(trust_env=False, verify=False, timeout=2) as self.http:
            await self._end_strays(instance.home_mark(self.settings.home), "Processes an earlier service left behind")
            serving = asyncio.create_task(self._serve(on_ready))
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
                self.report("Stopping.")
            finally:
                serving.cancel()
                stopped.cancel()
                await self._stop()
        self.report("Stopped.")
        return 0

    async def _serve(self, on_ready: OnReady | None) -> None:
        """Bring everything up, then keep the state file true until cancelled."""
        postgres = None if self.settings.database_url else embedded_postgres(self.settings)
        if postgres is not None:
            self.settings = _with(self.settings, database_url=postgres.url)
        database = Database(str(self.settings.database_url))
        state = ServiceState(urls=self._urls(), storage=self.settings.storage, database=str(self.settings.database_url))
        state.save(self.settings)
        await self._ready(self._watchdog())
        if postgres is not None:
            await postgres.prepare(self.report)
            await self._ready(postgres.program(service_environment(self.settings, self.mark)))
        try:
            await database.create_missing()
            server, *others = self._programs(state.urls, database.prefect_url)
            waiting = [asyncio.create_task(self._ready(server))]  # the slowest; it has no use for our tables
            await database.migrate()
            await check_listening(self.settings, database)
        finally:
            await database.close()
        await asyncio.gather(*waiting, *(self._ready(program) for program in others))
        state.ready = True
        self._save(state)
        self.report(f"Timestep is ready after {time.monotonic() - self.started:.1f} s.")
        self.report(f"  API         {state.urls.api}/v1")
        self.report(f"  Prefect UI  {state.urls.prefect_ui}")
        self.report(f"  Home        {self.settings.home}")
        if (warning := prefect_server.warning(self.settings)) is not None:
            self.report(warning)
        if on_ready is not None:
            on_ready(state)
        while True:
            await asyncio.sleep(0.5)
            self._save(state)

    async def _ready(self, program: Program) -> None:
        seconds = await self.supervisor.start(program).first_ready
        if program.name != "watchdog":
            self.report(f"{program.name:<14} ready in {seconds:.1f} s")

    async def _stop(self) -> None:
        begun = time.monotonic()
        for names, seconds in STOP_ORDER.items():
            await self.supervisor.stop(names, min(seconds, begun + STOP_SECONDS - time.monotonic()))
        await self._end_strays(self.mark, "Processes that outlived their parent")
        await self.supervisor.stop(["watchdog"], 1.0)
        state_path(self.settings).unlink(missing_ok=True)

    async def _end_strays(self, mark: str, what: str) -> None:
        if count := await asyncio.to_thread(instance.end_all, mark, grace=1.0):
            self.report(f"{what}: {count}, ended.")

    def _save(self, state: ServiceState) -> None:
        before = state.children
        state.children = {name: child.state.model_copy() for name, child in self.supervisor.children.items()}
        if state.children != before:
            state.save(self.settings)

    def _urls(self) -> Urls:
        settings = self.settings
        prefect_ui = f"http://{reachable(settings.prefect_host)}:{settings.prefect_port}"
        return Urls(
            api=settings.address,
            prefect_ui=prefect_ui,
            prefect_api=f"{prefect_ui}/api",
            model_server=str(settings.model_server_url),
            database=str(settings.database_url),
        )

    def _programs(self, urls: Urls, prefect_database: str) -> list[Program]:
        """What starts once there is a database; the Prefect server first."""
        ready_file = self.settings.run_dir / "worker.ready"

        async def worker_is_ready(pid: int) -> bool:
            return ready_file.exists() and ready_file.read_text() == str(pid)

        server = prefect_server.server_environment(self.settings, prefect_database)
        model_server = ("timestep.models.server", "--port", str(self.settings.model_port))
        return [
            self._python("prefect-server", "deployments.prefect_server", ready=f"{urls.prefect_api}/health", **server),
            self._python("worker", "deployments.worker", ready=worker_is_ready),
            self._python("model-server", *model_server, ready=f"{urls.model_server}/health"),
            self._python("http-server", "timestep.server", ready=f"{urls.api}/health"),
        ]

    def _python(self, name: str, *arguments: str, ready: str | Ready, **variables: str) -> Program:
        async def answers(_pid: int) -> bool:
            with suppress(httpx.HTTPError):
                return (await self.http.get(str(ready))).status_code == 200
            return False

        return Program(
            name,
            [sys.executable, "-m", *arguments],
            service_environment(self.settings, self.mark) | variables,
            answers if isinstance(ready, str) else ready,
            cwd=self.settings.run_dir,
        )

    def _watchdog(self) -> Program:
        async def at_once(_pid: int) -> bool:
            return True

        environment = service_environment(self.settings, self.mark)
        del environment[instance.VARIABLE]  # or it would be asked to end itself
        command = [sys.executable, "-m", "deployments.watchdog", self.mark]
        return Program(
            "watchdog", command, environment, at_once, cwd=self.settings.run_dir, death_signal=0, stdin_pipe=True
        )


@asynccontextmanager
async def _signals(stop: asyncio.Event) -> AsyncIterator[None]:
    """Set the event on Ctrl-C, on SIGTERM and when the terminal goes away."""
    loop = asyncio.get_running_loop()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    for number in numbers:
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    yield
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


async def _start_detached(settings: Settings, report: Report) -> ServiceState:
    """Start `up` as a process of its own and wait until it's ready, repeating what it reports."""
    log, errors = _log_path(settings), settings.log_dir / "up.err"
    seen = log.stat().st_size if log.exists() else 0
    with errors.open("wb") as stream:
        process = subprocess.Popen(  # noqa: ASYNC220 - it outlives this loop
            [sys.executable, "-m", "deployments.local"],
            env=detached_environment(settings),
            cwd=settings.run_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            **isolation(0),
        )
    while True:
        code, state = process.poll(), load_state(settings)
        with suppress(FileNotFoundError), log.open() as lines:
            lines.seek(seen)
            for line in lines.read().splitlines():
                report(line[STAMP:])
            seen = lines.tell()
        if code is not None:
            said = errors.read_text(errors="replace").strip().splitlines()
            raise TimestepError(said[-1] if said else f"The service ended ({describe_exit(code)}). Log: {log}")
        if state is not None and state.ready:
            return state
        await asyncio.sleep(0.1)


def _already_running(settings: Settings) -> ConflictError:
    state = load_state(settings)
    who = f" (process {state.pid}, {state.urls.api})" if state is not None else ""
    return ConflictError(f"A service already runs on home '{settings.home}'{who}. End it: timestep down")


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _reporter(settings: Settings) -> Report:
    """Writes a line to the terminal and, with the time, to the service's own log."""

    def report(line: str) -> None:
        with suppress(OSError):  # a terminal that is gone must not end the service
            print(line, flush=True)
        with open_log(_log_path(settings)) as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())

    return report


def _log_path(settings: Settings) -> Path:
    return settings.log_dir / "up.log"


def _with(settings: Settings, **changes: object) -> Settings:
    return load_settings(**{**settings.model_dump(exclude_none=True), **changes})


def main() -> int:
    """`python -m deployments.local`: the service with the settings of the environment."""
    try:
        return asyncio.run(up(load_settings()))
    except TimestepError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
