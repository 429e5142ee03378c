"""``timestep verify`` as users run it: the official client's suite, in its own environment, over HTTP."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tests.models.conftest import Server
from timestep.errors import UsageError
from timestep.verify.environments import find_uv
from timestep.verify.programs import run
from timestep.verify.results import Result
from timestep.verify.target import Target, find


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "timestep", "verify", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, env=environment(), cwd=ROOT
    )


@pytest.fixture(scope="module")
def judged(scripted: Server) -> subprocess.CompletedProcess[str]:
    """One run for all tests: the environment is made once per lock file, and kept."""
    try:
        find_uv()
    except UsageError as error:
        pytest.skip(str(error))
    return verify("--url", scripted.url, "--suite", "openai-python", "--json")


def test_the_official_client_is_answered(judged: subprocess.CompletedProcess[str]) -> None:
    (result,) = json.loads(judged.stdout)
    inference = [
        check
        for check in result["checks"]
        if check["name"].startswith(("test_models", "test_chat", "test_completions", "test_embeddings"))
    ]
    assert len(inference) > 50
    assert [check for check in inference if check["outcome"] != "passed"] == []


def test_a_failing_check_is_named_and_the_exit_code_says_so(judged: subprocess.CompletedProcess[str]) -> None:
    # This server has no database: files are what it can't do.
    assert judged.returncode == 1
    (result,) = json.loads(judged.stdout)
    failed = {check["name"]: check["detail"] for check in result["checks"] if check["outcome"] == "failed"}
    assert result["failed"] == len(failed) > 0
    assert "503" in failed["test_files::test_create_and_retrieve"]


def test_no_service_is_one_line() -> None:
    done = verify("--url", "http://127.0.0.1:9")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "timestep: No service answers at 'http://127.0.0.1:9'. Start one: timestep up\n"


def test_a_suite_whose_environment_cannot_be_made_fails_and_says_why(tmp_path: Path, scripted: Server) -> None:
    class Missing:
        name, about = "missing", "a suite without what it needs"

        def run(self, target: Target, cache: Path) -> Result:
            raise UsageError("The suites' environments are made by uv, and there is none.")

    result = run(Missing(), find(scripted.url, None, "wordllama-256", None), tmp_path)
    assert [check.detail for check in result.failures] == [
        "The suites' environments are made by uv, and there is none."
    ]


def test_the_scripted_model_is_asked_where_it_is_served(scripted: Server) -> None:
    assert find(f"{scripted.url}/v1/", None, "wordllama-256", None).model == "scripted"
    assert not find(scripted.url, "smollm2-135m-instruct", "wordllama-256", None).scripted
