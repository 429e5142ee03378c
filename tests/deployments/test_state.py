"""When a state file means a running service."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deployments.state import ServiceState, Urls, load_state, state_path
from tests.deployments.conftest import wait_for
from timestep.settings import Settings

URLS = Urls(api="a", prefect_ui="b", prefect_api="c", model_server="d", database="postgresql://h/postgres")
STORAGE = "s3://KEY:s3cret@bucket?endpoint=http://127.0.0.1:9000"
DATABASE = "postgresql://somebody:s3cret@h/postgres"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path)
    settings.run_dir.mkdir()
    return settings


def test_a_state_is_read_as_it_was_written(settings: Settings) -> None:
    state = ServiceState(urls=URLS, storage=STORAGE)
    state.save(settings)
    assert load_state(settings) == state


@pytest.mark.parametrize("secret", ["s3cret", "s3c/ret", "s3c:ret", "s3c%40ret"])
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://somebody:{}@db.example:5432/postgres?sslmode=require", "somebody:***@db.example:5432"),
        ("postgresql://db.example/postgres?user=somebody&password={}", "db.example/postgres?user=somebody"),
        ("postgresql+asyncpg://somebody@/postgres?host=/run&sslpassword={}", "somebody@/postgres?host=%2Frun"),
    ],
)
def test_the_databases_url_carries_no_password(url: str, shown: str, secret: str) -> None:
    database = Urls(**URLS.model_dump() | {"database": url.format(secret)}).database
    assert shown in database
    assert "s3c" not in database
    assert "ret" not in database


def test_storage_and_database_are_told_with_their_secrets_in_the_file_alone_and_to_its_owner_alone(
    settings: Settings,
) -> None:
    mask = os.umask(0)
    try:
        state = ServiceState(urls=URLS, storage=STORAGE, database=DATABASE)
        state.save(settings)
    finally:
        os.umask(mask)
    read = load_state(settings)
    assert read is not None
    assert (read.storage, read.database) == (STORAGE, DATABASE)
    assert "s3cret" not in f"{state.model_dump_json()} {state!r}"
    assert stat.S_IMODE(state_path(settings).stat().st_mode) == 0o600


def test_a_process_that_is_gone_is_no_service_even_before_its_parent_asked(settings: Settings) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = psutil.Process(process.pid).create_time()
        ServiceState(pid=process.pid, process_started=started, urls=URLS, storage=STORAGE).save(settings)
        assert load_state(settings) is not None
        assert process.stdin is not None
        process.stdin.close()
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, 10)
        assert load_state(settings) is None
    assert load_state(settings) is None


def test_another_program_under_the_same_number_is_no_service(settings: Settings) -> None:
    state = ServiceState(urls=URLS, storage=STORAGE)
    state.process_started -= 3600
    state.save(settings)
    assert load_state(settings) is None


def test_a_file_that_is_no_state_is_no_service(settings: Settings) -> None:
    state_path(settings).write_text("{")
    assert load_state(settings) is None
