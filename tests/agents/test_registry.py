"""The agent registry: what it finds in files, and what it says of files that are wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from timestep.agents.registry import load_agents, load_registry
from timestep.errors import AgentFileError, ConflictError, NotFoundError, UsageError
from timestep.settings import load_settings


def write(folder: Path, text: str, name: str = "agents.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_agent_of_a_file_is_found_once(tmp_path: Path) -> None:
    path = write(tmp_path, "from agents import Agent\na = Agent(name='one')\nb = a\nc = Agent(name='two')\n")
    assert [agent.name for agent in load_agents(path)] == ["one", "two"]


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    first = write(tmp_path, "from agents import Agent\na = Agent(name='one')\n")
    second = write(tmp_path / "x", "from agents import Agent\na = Agent(name='two')\n")
    registry = load_registry(load_settings(home=tmp_path, agents=[first, second]))
    assert registry.names() == ["assistant", "one", "two"]


def test_a_name_defined_twice_is_a_conflict(tmp_path: Path) -> None:
    text = "from agents import Agent\na = Agent(name='one')\n"
    files = [write(tmp_path, text), write(tmp_path, text, "more.py")]
    with pytest.raises(ConflictError, match="Two agents are named 'one'"):
        load_registry(load_settings(home=tmp_path, agents=files))


def test_a_file_may_replace_the_default_agent(tmp_path: Path) -> None:
    path = write(tmp_path, "from agents import Agent\na = Agent(name='assistant', instructions='Mine.')\n")
    registry = load_registry(load_settings(home=tmp_path, agents=[path]))
    assert registry.get("assistant").instructions == "Mine."


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("import agents\n\ndef broken(:\n", 3, "SyntaxError"),
        ("import agents\n\nagents.Agnet\n", 3, "AttributeError"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
        ("import nowhere_to_be_found\n", 1, "No module named 'nowhere_to_be_found'"),
        ("x = 1\n", None, "it defines no agent"),
        ("from agents import Agent\na = Agent(name='a/b')\n", None, "can't be used"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, line: int | None, why: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(AgentFileError) as caught:
        load_agents(path)
    assert str(path) in str(caught.value) and why in str(caught.value)
    assert caught.value.line == line


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentFileError, match="no such file"):
        load_agents(tmp_path / "nowhere.py")


def test_an_unknown_agent_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'assistant'"):
        load_registry(load_settings(home=tmp_path)).get("asistant")


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("None", "smollm2-135m-instruct"),
        ("'local'", "smollm2-135m-instruct"),
        ("'local/smollm2-135m-instruct'", "smollm2-135m-instruct"),
        ("'/models/x.gguf'", "/models/x.gguf"),
        ("'https://example.org/x.gguf'", "https://example.org/x.gguf"),
        ("'smollm2-135m-instruct'", "smollm2-135m-instruct"),
        ("'local/assistant@3'", None),
        ("'gpt-4.1'", None),
        ("'litellm/some/model'", None),
    ],
)
def test_base_of_an_agents_model(tmp_path: Path, model: str, base: str | None) -> None:
    path = write(tmp_path, f"from agents import Agent\na = Agent(name='one', model={model})\n")
    assert load_registry(load_settings(home=tmp_path, agents=[path])).base("one") == base


def test_a_relative_file_is_beside_the_agents_file(tmp_path: Path) -> None:
    path = write(tmp_path, "from agents import Agent\na = Agent(name='one', model='models/x.gguf')\n")
    assert load_registry(load_settings(home=tmp_path, agents=[path])).base("one") == str(tmp_path / "models/x.gguf")


CONTROLFLOW = """
import controlflow
named = controlflow.Agent(name="named", model="local/assistant@3")
unnamed = controlflow.Agent(instructions="Help.")
called = controlflow.Task("Do it.", name="a task", agents=[named])
by_variable = controlflow.Task("Do it.", agents=[named])
@controlflow.flow
def steps(topic: str): ...
@controlflow.task
def poem(about: str): ...
talk = controlflow.Flow()
"""


def test_controlflows_agents_tasks_and_flows_are_found_beside_the_sdks(tmp_path: Path) -> None:
    text = CONTROLFLOW + "from agents import Agent\na = Agent(name='one')\n"
    registry = load_registry(load_settings(home=tmp_path, agents=[write(tmp_path, text)]))
    kinds = {name: found.kind for name in registry.names() if (found := registry.orchestrated(name)) is not None}
    assert kinds == {
        "named": "agent",
        "unnamed": "agent",
        "a task": "task",
        "by_variable": "task",
        "steps": "flow",
        "poem": "task",
        "talk": "flow",
    }
    assert registry.orchestrated("one") is None and registry.get("one").name == "one"
    bases = [registry.base(name) for name in ("named", "unnamed", "a task", "steps")]
    assert bases == [None, "smollm2-135m-instruct", None, None]
    with pytest.raises(UsageError, match="'a task' is a ControlFlow task"):
        registry.get("a task")


def test_a_file_that_controlflow_refuses_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "import controlflow\n@controlflow.flow(retries=2)\ndef f(): ...\n")
    with pytest.raises(AgentFileError, match="retries") as caught:
        load_agents(path)
    assert caught.value.line == 2


SAYS = """
import contextvars, logging, sys
from pathlib import Path
import prefect.settings, timestep.agents.durable.run
from timestep.agents.registry import load_agents
def state():
    levels = [logging.getLogger(name).level for name in (None, "prefect", "prefect.flow_runs")]
    handlers = list(logging.getLogger().handlers)
    return prefect.settings.PREFECT_LOGGING_LEVEL.value(), levels, handlers, len(sys.meta_path)
before = state()
load_agents(Path(sys.argv[1]))
assert state() == before, (before, state())
print("controlflow" in sys.modules)
"""


@pytest.mark.parametrize("text", ["from agents import Agent\na = Agent(name='a')\n", "import helper\n{CONTROLFLOW}"])
def test_controlflow_is_loaded_where_it_is_used_and_changes_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, "import controlflow.agents\n", "helper.py")
    path = write(tmp_path, text.replace("{CONTROLFLOW}", CONTROLFLOW), "mine.py")
    (tmp_path / "home").mkdir()
    write(tmp_path, "CONTROLFLOW_LLM_MODEL=nobody/nothing\nCONTROLFLOW_LOG_LEVEL=DEBUG\n", ".env")
    settings = {"HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
    done = subprocess.run(
        [sys.executable, "-c", SAYS, str(path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", **settings},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", f"{'import helper' in text}\n")
    assert not list((tmp_path / "home").iterdir())
