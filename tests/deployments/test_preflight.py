"""Starts that can't work: refused before anything is started, in one line that names what to change."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from deployments.local import down, free_port, status
from deployments.local import up as start_service
from deployments.prefect_server import warning
from deployments.state import ServiceState, Urls, state_path
from tests.conftest import environment
from timestep.errors import ConflictError, ModelFileError, NotFoundError, UsageError
from timestep.settings import Settings, load_settings

NOBODY = 65534


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", port=free_port(), prefect_port=free_port())


def other(settings: Settings, **changes: object) -> Settings:
    return load_settings(**{**settings.model_dump(exclude_none=True), **changes})


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights for a while."""
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach."""
    with TemporaryDirectory(prefix="tsu-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can be somebody else for a while"
)


async def test_a_home_that_can_not_be_is_named() -> None:
    home = Path("/dev/null/x")
    with pytest.raises(UsageError, match=r"^Folder '/dev/null/x' can't be used: Not a directory\. .*--home"):
        await start_service(Settings(home=home))
    assert status(Settings(home=home)) is None
    assert not await down(Settings(home=home))


@needs_root
async def test_a_home_that_one_may_not_write_is_named(settings: Settings, public: Path) -> None:
    settings = other(settings, home=public / "home")
    settings.run_dir.mkdir(parents=True)
    settings.log_dir.mkdir()
    with as_nobody(), pytest.raises(UsageError, match=f"^Folder '{settings.home}' can't be used: Permission denied"):
        await start_service(settings)


@needs_root
async def test_somebody_elses_service_is_neither_told_nor_ended(settings: Settings, public: Path) -> None:
    settings = other(settings, home=public)
    settings.run_dir.mkdir()
    urls = Urls(api="a", prefect_ui="b", prefect_api="c", model_server="d", database="postgresql://h/postgres")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            started = psutil.Process(process.pid).create_time()
            ServiceState(pid=process.pid, process_started=started, urls=urls, storage="s").save(settings)
            with as_nobody(), pytest.raises(UsageError, match=f"^'{state_path(settings)}' belongs to another user"):
                status(settings)
            state_path(settings).chmod(0o644)
            with as_nobody(), pytest.raises(UsageError, match=f"^Process {process.pid} belongs to another user"):
                await down(settings)
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)


async def test_a_taken_port_is_refused_with_the_option_that_moves_it(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"Port {port} is taken on 127.0.0.1. Choose another: --prefect-port N"):
            await start_service(other(settings, prefect_port=port))


@pytest.mark.parametrize("host", ["foo.invalid", "203.0.113.1"])
async def test_a_host_that_is_not_this_machine_is_named(settings: Settings, host: str) -> None:
    with pytest.raises(UsageError, match=rf"^Nothing can listen on host '{host}': .+\. .*--host"):
        await start_service(other(settings, host=host))


@needs_root
@pytest.mark.skipif(
    sys.platform != "linux" or int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80,
    reason="every user may listen on port 80 here",
)
async def test_a_port_that_is_not_permitted_is_not_called_taken(settings: Settings, public: Path) -> None:
    os.chown(public, NOBODY, NOBODY)
    with as_nobody(), pytest.raises(UsageError, match=r"^This user may not listen on port 80\. .*--port"):
        await start_service(other(settings, home=public, port=80))


async def test_a_database_url_that_is_none_is_refused(settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"^'mysql://h' is no PostgreSQL URL"):
        await start_service(other(settings, database_url="mysql://h"))


async def test_a_base_model_that_is_none_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^No model 'smollm2-135m'\. Did you mean 'smollm2-135m-instruct'\?"):
        await start_service(other(settings, model="smollm2-135m"))
    with pytest.raises(ModelFileError, match=r"^Model file '/absent/x\.gguf': no such file"):
        await start_service(other(settings, model="/absent/x.gguf"))
    (tmp_path / "x.gguf").write_bytes(b"GGML")
    with pytest.raises(ModelFileError, match=r"x\.gguf'"):
        await start_service(other(settings, model=str(tmp_path / "x.gguf")))


async def test_a_model_file_is_meant_from_where_the_command_was_given(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/house")
    assert load_settings(model="./x.gguf").model == str(tmp_path / "x.gguf")
    assert load_settings(model="~/x.gguf").model == "/house/x.gguf"
    assert load_settings(model="~nosuchuser/x.gguf").model == str(tmp_path / "~nosuchuser/x.gguf")
    monkeypatch.setenv("TIMESTEP_MODEL", "x.gguf")
    assert load_settings().environment()["TIMESTEP_MODEL"] == str(tmp_path / "x.gguf")


@pytest.mark.parametrize("model", ["https://host/x.gguf", "smollm2-135m-instruct"])
def test_what_is_no_model_file_stays_as_it_is(model: str) -> None:
    assert load_settings(model=model).model == model


def test_the_refusal_is_one_line(settings: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deployments.local"],
        env=environment() | settings.environment() | {"TIMESTEP_HOME": "/dev/null/x"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, len((done.stdout + done.stderr).splitlines())) == (1, 1), done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "lab.example"])
def test_of_a_prefect_server_that_others_reach_is_said_that_it_asks_for_no_key(host: str, settings: Settings) -> None:
    said = warning(other(settings, prefect_host=host)) or ""
    assert f"listens on '{host}' and asks for no key" in said and "\n" not in said


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_of_a_prefect_server_of_this_machine_alone_nothing_is_said(host: str, settings: Settings) -> None:
    assert warning(other(settings, prefect_host=host)) is None
