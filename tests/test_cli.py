"""The command line by itself: help, usage errors, and that the README shows what there is."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment


def timestep(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "timestep", *arguments]
    own = environment() | {f"TIMESTEP_{name}": value for name, value in settings.items()}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=own, cwd=ROOT)


def readme_commands() -> list[list[str]]:
    """Every ``timestep …`` line of the README's shell blocks, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("timestep ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_version() -> None:
    done = timestep("--version")
    assert re.fullmatch(r"timestep \d+\.\d+\.\d+\n", done.stdout)


COMMANDS = [
    *("up", "serve", "status", "down", "keys", "verify"),
    *("step", "train", "batch", "show", "approve", "answer", "settle", "resume", "cancel"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_stands_in_the_readme(command: str) -> None:
    shown = timestep(command, "--help").stdout
    assert shown.count("\n") > 5
    assert any(words[0] == command for words in readme_commands())


def test_options_in_the_readme_exist() -> None:
    for command, *words in readme_commands():
        options = {word for word in words if word.startswith("--")}
        within = words[:1] if command == "keys" else []
        shown = timestep(command, *within, "--help").stdout
        assert all(option in shown for option in options), (command, options)


def test_readme_table_lists_every_option_of_up() -> None:
    shown = set(re.findall(r"--[a-z-]+", timestep("up", "--help").stdout)) - {"--help"}
    assert shown <= set(re.findall(r"--[a-z-]+", (ROOT / "README.md").read_text()))


def test_every_command_is_tested_for_its_help() -> None:
    listed = timestep("--help").stdout.partition("Commands:")[2]
    assert set(re.findall(r"^  ([a-z]+) ", listed, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("command", [["show", "x"], ["settle", "x", "--run-again"]])
def test_a_step_without_its_service_is_one_line(command: list[str], tmp_path: object) -> None:
    done = timestep(*command, "--home", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("Start one: timestep up\n")


@pytest.mark.parametrize("options", [[], ["--run-again", "--fail", "why"], ["--result", "r", "--fail", "why"]])
def test_a_cut_call_is_settled_in_one_way(options: list[str]) -> None:
    done = timestep("settle", "x", *options)
    assert done.returncode == 1
    assert done.stderr == "timestep: Say one of --run-again, --result TEXT and --fail WHY.\n"


def test_unknown_option_is_a_usage_error() -> None:
    assert timestep("step", "--modle", "x").returncode == 2


@pytest.mark.parametrize("command", [["status"], ["down"]])
def test_without_a_service_one_line_says_so(command: list[str], tmp_path: object) -> None:
    done = timestep(*command, "--home", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No service runs" in done.stderr


def test_a_server_alone_says_which_part_it_misses(tmp_path: object) -> None:
    given = ["--database-url", "postgresql://127.0.0.1:1", "--prefect-api-url", "http://127.0.0.1:1/api"]
    for count, missing in ((0, "database-url"), (2, "prefect-api-url"), (4, "model-server-url")):
        done = timestep("serve", "--home", str(tmp_path), *given[:count])
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"timestep: A server alone needs --{missing} URL, or TIMESTEP_")


def test_a_scope_that_is_none_is_named(tmp_path: object) -> None:
    done = timestep("keys", "create", "--scope", "root", "--home", str(tmp_path))
    assert done.stderr == "timestep: No scope 'root'. Scopes: inference, training, admin.\n"


def test_bad_setting_is_one_line() -> None:
    done = timestep("up", "--port", "99999")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "'99999'" in done.stderr
