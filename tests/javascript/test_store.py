"""RunStateStore(format="js"): the file is JavaScript's own, in both directions."""

import json
from pathlib import Path

import pytest

from tests.javascript.conftest import JavaScript
from tests.javascript.python_side import Description, PythonSide, decide
from timestep.agents.run_state import RunStateStore
from timestep.errors import StateTransferError

DESK: Description = {
    "desk": {
        "tools": [{"name": "send", "approval": True}, {"name": "save", "approval": True}],
        "plan": [
            [
                {"call": "call_1", "name": "send", "arguments": "{}"},
                {"call": "call_2", "name": "save", "arguments": "{}"},
            ],
            "done",
        ],
    }
}
YES = [{"call": "call_1", "approve": True}, {"call": "call_2", "approve": True}]


async def test_javascript_reads_the_file_that_python_wrote(javascript: JavaScript, tmp_path: Path) -> None:
    side = PythonSide(DESK)
    store = RunStateStore(tmp_path / "state.json", side.agent, format="js")
    state = (await side.run("hello", {"a": 1})).to_state()
    await store.save(state)
    assert javascript(DESK, state=(tmp_path / "state.json").read_text(), decisions=YES)["output"] == "done"
    decide(state, YES)  # decisions are in the file too
    await store.save(state)
    assert javascript(DESK, state=(tmp_path / "state.json").read_text())["output"] == "done"


async def test_python_reads_the_file_that_javascript_wrote(javascript: JavaScript, tmp_path: Path) -> None:
    first = javascript(DESK, input="hello", context={"a": 1}, decisions=YES[:1])
    (tmp_path / "state.json").write_text(json.dumps(first["state"]))
    side = PythonSide(DESK)
    state = await RunStateStore(tmp_path / "state.json", side.agent, format="js").load()
    assert state is not None
    decide(state, YES[1:])
    assert (await side.run(state)).final_output == "done"
    assert side.log["ran"] == ['send {} {"a":1}', 'save {} {"a":1}']


async def test_what_can_not_be_carried_is_not_saved(tmp_path: Path) -> None:
    side = PythonSide(DESK)
    store = RunStateStore(tmp_path / "state.json", side.agent, format="js")
    with pytest.raises(StateTransferError, match="can't hold exactly"):
        await store.save((await side.run("hello", {"account": 2**60})).to_state())
    assert not (tmp_path / "state.json").exists()
