"""The roles of the image: their commands, and the environment they get."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments import pod
from tests.conftest import environment


class ExecutedError(Exception):
    """In place of becoming another program."""

    def __init__(self, path: str, arguments: list[str], environment: dict[str, str]) -> None:
        self.arguments, self.environment = [path, *arguments], environment


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a role with these variables; the command and the environment it would become."""

    def become(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        raise ExecutedError(path, arguments, environment)

    def run(*arguments: str, **variables: str) -> tuple[list[str], dict[str, str]]:
        values = {"TIMESTEP_HOME": str(tmp_path / "home"), "TIMESTEP_PREFECT_API_URL": "http://server:4200/api"}
        for name, value in (values | variables).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ExecutedError) as caught:
            pod.main(arguments)
        return caught.value.arguments, caught.value.environment

    monkeypatch.setattr(os, "execve", become)
    return run


def test_prefects_settings_follow_from_ours(executed: Any, tmp_path: Path) -> None:
    command, variables = executed("api", TIMESTEP_PREFECT_AUTH="user:secret")
    assert command == [sys.executable, sys.executable, "-m", "timestep.server"]
    assert variables["PREFECT_API_URL"] == "http://server:4200/api"
    assert variables["PREFECT_API_AUTH_STRING"] == "user:secret"
    assert variables["PREFECT_HOME"] == str(tmp_path / "home" / "prefect")
    assert variables["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] == "timestep-storage/default"
    assert variables["GOMP_SPINCOUNT"] == "300"
    assert (tmp_path / "home" / "run").is_dir()
    assert (tmp_path / "home" / "logs").is_dir()


def test_what_the_pod_sets_is_kept(executed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())
    mine = {"PREFECT_API_URL": "http://mine/api", "GOMP_SPINCOUNT": "1", "PREFECT_CLIENT_MAX_RETRIES": "3"}
    run = {"PREFECT__FLOW_RUN_ID": "b4d0", "OTHER": "value"}
    _, variables = executed("job", TIMESTEP_PREFECT_AUTH="user:secret", **mine, **run)
    assert mine.items() | run.items() <= variables.items()


def test_a_job_executes_its_flow_run_in_an_empty_folder(executed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())  # back at the end
    command, _ = executed("job")
    assert command[2:] == ["-m", "prefect", "flow-run", "execute"]
    assert list(Path.cwd().iterdir()) == []


def test_options_follow_those_of_the_role(executed: Any) -> None:
    assert executed("wait")[0][2:] == ["-m", "deployments.migrate", "--wait"]
    command, _ = executed("prefect-server", "--web-only")
    assert command[2:] == ["-m", "deployments.prefect_server", "--web-only"]


def test_without_a_key_none_is_made_up_and_https_uses_every_certificate(executed: Any) -> None:
    _, variables = executed("api", TIMESTEP_PREFECT_API_URL="https://prefect.example/api")
    assert "PREFECT_API_AUTH_STRING" not in variables
    assert "PREFECT_API_SSL_CERT_FILE" not in variables
    _, variables = executed("api")
    assert Path(variables["PREFECT_API_SSL_CERT_FILE"]).exists()


def test_the_worker_watches_its_own_namespace(executed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"
    monkeypatch.setattr(pod, "NAMESPACE", tmp_path / "namespace")
    assert name not in executed("worker")[1]
    (tmp_path / "namespace").write_text("agents\n")
    assert executed("worker")[1][name] == "agents"
    assert name not in executed("warm-worker")[1]
    assert executed("worker", **{name: "jobs"})[1][name] == "jobs"


def test_the_database_and_the_secrets_need_no_home(executed: Any) -> None:
    for role in ("database", "secrets"):
        _, variables = executed(role, TIMESTEP_HOME="/proc/no-such-folder")
        assert not [name for name in variables if name.startswith("PREFECT_")]


@pytest.mark.parametrize("role", pod.ROLES)
def test_every_role_has_its_program(role: str) -> None:
    assert importlib.util.find_spec(pod.ROLES[role][0]) is not None


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["wroker"], {}, "No role 'wroker'. Roles: database, "),
        ([], {}, "No role ''."),
        (["api"], {"TIMESTEP_PORT": "many"}, "TIMESTEP_PORT: "),
        (["api"], {"TIMESTEP_HOME": "/proc/no-such-folder"}, "Folder '/proc/no-such-folder' can't be used"),
    ],
)
def test_what_cant_be_meant_is_one_line(
    arguments: list[str], variables: dict[str, str], words: str, tmp_path: Path
) -> None:
    done = run_pod(*arguments, **({"TIMESTEP_HOME": str(tmp_path)} | variables))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == 1


def test_the_process_becomes_the_program(tmp_path: Path) -> None:
    done = run_pod("job", TIMESTEP_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "Could not determine the ID of the flow run" in done.stdout


def run_pod(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deployments.pod", *arguments]
    return subprocess.run(
        command, env=environment() | variables, capture_output=True, text=True, timeout=120, check=False
    )
