"""Positions and keys of the durable runtime, without a server: what makes two calls the same call."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from agents import ModelSettings

from timestep.agents.durable.run import DurableStep, run_durably
from timestep.agents.record.units import fingerprint


@pytest.fixture
def agents_module(tmp_path: Path) -> ModuleType:
    path = Path(shutil.copy(Path(__file__).parents[1] / "agents_file.py", tmp_path / "agents.py"))
    spec = importlib.util.spec_from_file_location("agents_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def positions(agents_module: ModuleType, name: str) -> list[str]:
    step = DurableStep("s", resolve=lambda agent: ("scripted", agent.model))
    await run_durably(step, getattr(agents_module, name), "go", context=None, max_turns=10, settings=ModelSettings())
    return sorted(call.position for call in step.calls)


async def test_parallel_calls_are_numbered_by_their_place_in_the_response(agents_module: ModuleType) -> None:
    expected = ["planner/0", "planner/0/0", "planner/0/1", "planner/1", "planner/1/0", "planner/2"]
    assert await positions(agents_module, "planner") == expected


async def test_runs_within_tools_lie_below_the_tools_position(agents_module: ModuleType) -> None:
    found = await positions(agents_module, "manager")
    assert "manager/0/0/specialist/0/0" in found and "manager/0/0/specialist/1" in found


async def test_original_agents_are_left_as_they_are(agents_module: ModuleType) -> None:
    planner = agents_module.planner
    before = (planner.model, list(planner.tools), planner.tools[0].on_invoke_tool)
    await positions(agents_module, "planner")
    assert (planner.model, list(planner.tools), planner.tools[0].on_invoke_tool) == before


def test_fingerprint_is_of_the_json_not_of_its_order() -> None:
    assert fingerprint({"a": 1, "b": [1, {"c": "é"}]}) == fingerprint({"b": [1, {"c": "é"}], "a": 1})
    assert fingerprint("1") != fingerprint(1)
