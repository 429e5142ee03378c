"""Run states: put aside in one process, decided and run on in another; what is refused, and what survives."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, RunState, function_tool, handoff
from sqlalchemy import text

from tests.agents.library_process import build
from tests.conftest import ROOT, environment
from timestep import RunStateStore, run_agent
from timestep.database.engine import Database
from timestep.errors import RunStateError, StateTransferError, UsageError

# Runs by name: what they are, and what is decided in each of the processes after the first.
RUNS: dict[str, tuple[str, list[dict[str, str]]]] = {
    "in a file": ("parallel", [{"send": "approve", "wipe": "reject"}]),
    "in the database": ("parallel", [{"send": "approve", "wipe": "reject"}]),
    "one by one": ("parallel", [{"send": "approve"}, {"wipe": "approve"}]),
    "always": ("twice", [{"send": "always"}]),
    "never": ("twice", [{"send": "never"}]),
    "each time": ("twice", [{"send": "approve"}, {"send": "reject"}]),
    "nested, approved": ("nested", [{"send": "approve"}]),
    "nested, rejected": ("nested", [{"send": "reject"}]),
    "after a handoff": ("handoff", [{"send": "approve"}]),
}
Story = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Story:
    """All the runs, through three processes: what each run was like at the end of each process."""
    folder = tmp_path_factory.mktemp("runs")
    story: Story = {name: [] for name in RUNS}
    for number in range(3):
        asked = {}
        for name, (scenario, decisions) in RUNS.items():
            if number <= len(decisions):
                lies = {"session_id": "talk"} if name == "in the database" else {"path": str(folder / "deep" / name)}
                decide = decisions[number - 1] if number else {}
                asked[name] = {
                    "scenario": scenario,
                    "log": str(folder / f"{name}.log"),
                    "store": lies,
                    "decide": decide,
                }
        command = [sys.executable, "-m", "tests.agents.library_process", json.dumps(asked)]
        variables = environment() | {"TIMESTEP_DB_URL": postgres_url}
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for name, end in json.loads(done.stdout).items():
            story[name].append(end)
    assert not list((folder / "deep").iterdir())  # what has ended was cleared
    return story


@pytest.mark.parametrize("name", ["in a file", "in the database"])
def test_parallel_calls_are_decided_one_by_one(name: str, story: Story) -> None:
    first, second = story[name]
    assert [call[:2] for call in first["waiting"]] == [["clerk", "send"], ["clerk", "wipe"]]
    assert first["executed"] == ["look a"]
    assert (second["output"], second["waiting"], second["executed"]) == ("done", [], ["look a", "send b"])
    assert second["context"] == {"user": "k"} and second["pid"] != first["pid"]


def test_what_is_not_decided_yet_goes_on_waiting(story: Story) -> None:
    _, second, third = story["one by one"]
    assert [call[1] for call in second["waiting"]] == ["wipe"]
    assert second["executed"] == ["look a", "send b"]
    assert (third["output"], third["executed"]) == ("done", ["look a", "send b", "wipe c"])


@pytest.mark.parametrize(
    ("name", "executed"), [("always", ["send a", "send b"]), ("never", []), ("each time", ["send a"])]
)
def test_always_holds_for_the_rest_of_the_run(name: str, executed: list[str], story: Story) -> None:
    assert (story[name][-1]["output"], story[name][-1]["executed"]) == ("done", executed)


@pytest.mark.parametrize(("name", "executed"), [("nested, approved", ["send deep"]), ("nested, rejected", [])])
def test_a_call_within_an_agent_that_is_a_tool(name: str, executed: list[str], story: Story) -> None:
    first, second = story[name]
    assert first["waiting"] == [["inner", "send", '{"what": "deep"}']]
    assert (second["output"], second["executed"]) == ("done", executed)


def test_a_call_after_a_handoff(story: Story) -> None:
    first, second = story["after a handoff"]
    assert first["waiting"] == [["second", "send", '{"what": "b"}']]
    assert (second["output"], second["last"], second["executed"]) == ("second done", "second", ["send b"])


async def waiting(agent: Agent[Any], **options: Any) -> RunState[Any, Any]:
    result = await run_agent(agent, "go", **options)
    assert result.interruptions
    return result.to_state()


@pytest.fixture
def clerk(tmp_path: Path) -> Agent[Any]:
    return build("twice", tmp_path / "log")


async def test_nothing_saved_is_nothing_loaded(clerk: Agent[Any], tmp_path: Path) -> None:
    store = RunStateStore(tmp_path / "state.json", clerk)
    assert await store.load() is None
    await store.clear()


async def test_the_file_is_the_sdks_own_json(clerk: Agent[Any], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = await waiting(clerk)
    await RunStateStore(path, clerk).save(state)
    loaded = await RunState.from_string(clerk, path.read_text())
    assert loaded.to_json() == state.to_json()
    assert oct(path.stat().st_mode & 0o777) == "0o600"  # a conversation is nobody else's business
    # And the other way: what the SDK wrote is loaded.
    path.write_text(state.to_string())
    again = await RunStateStore(path, clerk).load()
    assert again is not None and again.to_json() == state.to_json()


async def refusal(store: RunStateStore, **options: Any) -> str:
    with pytest.raises(RunStateError) as caught:
        await store.load(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_state_of_another_agent_or_version_is_refused_by_name(clerk: Agent[Any], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await RunStateStore(path, clerk, version="1").save(await waiting(clerk))
    other = clerk.clone(name="writer")
    assert f"Run state '{path}': it belongs to agent 'clerk', not to 'writer'." in await refusal(
        RunStateStore(path, other, version="1")
    )
    assert "belongs to version '1' of agent 'clerk'; this store, to version '2'" in await refusal(
        RunStateStore(path, clerk, version="2")
    )
    assert "this store, to no version" in await refusal(RunStateStore(path, clerk))
    # A state that says nothing of whose it is still names the agent that it waits at.
    plain = json.loads(path.read_text())
    del plain["$timestep"]
    path.write_text(json.dumps(plain))
    assert "it is of agent 'clerk', which 'writer' does not lead to. Agents: writer." in await refusal(
        RunStateStore(path, other)
    )


async def test_changed_tools_and_handoffs_are_named(clerk: Agent[Any], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await RunStateStore(path, clerk).save(await waiting(clerk))

    @function_tool
    def shred() -> str:
        return ""

    changed = clerk.clone(tools=[*clerk.tools, shred], handoffs=[handoff(Agent(name="boss"))])
    said = await refusal(RunStateStore(path, changed))
    for part in ("agent 'boss' is new", "handoff 'boss' of 'clerk' is new", "tool 'shred' of 'clerk' is new"):
        assert part in said
    assert "'send'" not in said and "load(accept_changes=True)" in said
    loaded = await RunStateStore(path, changed).load(accept_changes=True)
    assert loaded is not None and len(loaded.get_interruptions()) == 1
    assert "tool 'send' of 'clerk' is gone" in await refusal(RunStateStore(path, clerk.clone(tools=[])))
    # Another model, other instructions: the same agent.
    assert await RunStateStore(path, clerk.clone(instructions="Anew.", model="gpt-4.1")).load() is not None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "damaged"),
        (b'{"$schemaVersion": "1.21", "curr', "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[]", "it is no run's state"),
        (b'{"a": 1}', "it is no run's state"),
        (b'{"$schemaVersion": "9.9", "current_agent": {"name": "clerk"}}', "schema version is not supported"),
        (b'{"$schemaVersion": "1.21"}', "damaged"),
        (b'{"$schemaVersion": "1.17", "currentAgent": {"name": "clerk"}}', "it is in the format 'js', not 'python'"),
    ],
)
async def test_a_damaged_file_is_one_clear_line(content: bytes, why: str, clerk: Agent[Any], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    said = await refusal(RunStateStore(path, clerk))
    assert str(path) in said and why in said


async def test_every_truncation_is_refused(clerk: Agent[Any], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await RunStateStore(path, clerk).save(await waiting(clerk))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        assert "damaged" in await refusal(RunStateStore(path, clerk))


@dataclass
class Person:
    name: str


async def test_a_context_that_json_cannot_hold_is_given_again(clerk: Agent[Any], tmp_path: Path) -> None:
    store = RunStateStore(tmp_path / "state.json", clerk)
    await store.save(await waiting(clerk, context=Person("k")))
    assert re.search(r"its context was a '.*Person', .*load\(context=…\)", await refusal(store))
    loaded = await store.load(context=Person("l"))
    assert loaded is not None and loaded._context is not None and loaded._context.context == Person("l")


async def test_a_row_is_json_that_the_database_can_read(clerk: Agent[Any], empty_server: str) -> None:
    await RunStateStore(agent=clerk, session_id="talk", database_url=empty_server).save(await waiting(clerk))
    opened = Database(empty_server)
    async with opened.session() as session:
        name = await session.scalar(text("select state::jsonb -> '$timestep' ->> 'agent' from run_states"))
    await opened.close()
    assert name == clerk.name


async def test_any_text_survives_in_the_database(clerk: Agent[Any], empty_server: str) -> None:
    state = await waiting(clerk, context={"b": "\x00 \ud800 ü", "a": 1})
    store = RunStateStore(agent=clerk, session_id="talk", database_url=empty_server)
    await store.save(state)
    await store.save(state)
    loaded = await store.load()
    assert loaded is not None and loaded._context is not None
    assert list(loaded._context.context.items()) == [("b", "\x00 \ud800 ü"), ("a", 1)]
    assert await RunStateStore(agent=clerk, session_id="other", database_url=empty_server).load() is None
    assert "not to 'writer'" in await refusal(
        RunStateStore(agent=clerk.clone(name="writer"), session_id="talk", database_url=empty_server)
    )
    await store.clear()
    assert await store.load() is None


def test_a_killed_writer_leaves_a_whole_file(clerk: Agent[Any], tmp_path: Path) -> None:
    store = RunStateStore(tmp_path / "state.json", clerk)
    states = [asyncio.run(waiting(clerk, context={"much": letter * 500_000})) for letter in "ab"]
    asyncio.run(store.save(states[0]))

    async def write() -> None:
        while True:
            for state in states:
                await store.save(state)

    found = set()
    for number in range(12):
        writer = os.fork()
        if writer == 0:
            try:
                asyncio.run(write())
            finally:
                os._exit(1)
        time.sleep(0.1 + 0.01 * number)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        loaded = asyncio.run(store.load())
        assert loaded is not None and loaded._context is not None
        found.add(loaded._context.context["much"])
    assert found == {"a" * 500_000, "b" * 500_000}  # it wrote


async def test_a_link_stays_one(clerk: Agent[Any], tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("real.json")
    await RunStateStore(tmp_path / "link.json", clerk).save(await waiting(clerk))
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").is_file()


async def test_the_javascript_format_comes_back(clerk: Agent[Any], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    store = RunStateStore(path, clerk, format="js")
    state = await waiting(clerk, context={"user": "k"})
    state.approve(state.get_interruptions()[0], always_approve=True)
    await store.save(state)
    written = json.loads(path.read_text())
    assert written["currentAgent"] == {"name": "clerk"} and written["$timestep"]["agent"] == "clerk"
    loaded = await store.load()
    assert loaded is not None
    result = await run_agent(clerk, loaded)
    assert result.final_output == "done"
    assert "in the format 'js', not 'python'" in await refusal(RunStateStore(path, clerk))
    with pytest.raises(StateTransferError):
        await store.save(await waiting(clerk, context=Person("k")))


def test_what_cannot_be_meant(clerk: Agent[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIMESTEP_DATABASE_URL", "TIMESTEP_DB_URL"):
        monkeypatch.delenv(name, raising=False)
    for options, why in [
        ({"path": "x"}, "belongs to an agent"),
        ({"agent": clerk}, "either a path or a session_id"),
        ({"agent": clerk, "path": "x", "session_id": "y"}, "either a path or a session_id"),
        ({"agent": clerk, "session_id": "y"}, "TIMESTEP_DATABASE_URL"),
        ({"agent": clerk, "path": "x", "format": "yaml"}, "No format 'yaml'"),
    ]:
        with pytest.raises(UsageError, match=why):
            RunStateStore(**options)  # type: ignore[arg-type]
