"""What a person reads of a step: the tables say what calls took and cost."""

from typing import Any

from timestep.agents import report
from timestep.agents.types import Mode, StepOutput, Usage

MODEL = {"input_tokens": 5, "output_tokens": 2}
CALLS = [
    {"position": "a/0", "kind": "model", "name": "m", "seconds": 0.12345, "usage": MODEL, "cost": 0.00042},
    {"position": "a/0/0", "kind": "tool", "name": "t", "seconds": 1.0, "usage": None, "cost": None},
    {"position": "a/1", "kind": "model", "name": "?", "seconds": 0.0, "usage": MODEL, "cost": None},
    {"position": "a/2", "kind": "model", "name": "local", "seconds": 0.0, "usage": MODEL, "cost": 0.0},
]


def test_turns_say_what_each_call_cost() -> None:
    rows = report.turns({"calls": CALLS})
    assert [row["cost"] for row in rows] == ["$0.00042", "", "", "$0"]
    assert rows[0]["seconds"] == 0.123


def test_summary_says_what_the_step_cost_or_that_it_is_not_known() -> None:
    def summary(cost: float | None) -> str:
        usage = Usage(requests=1, input_tokens=5, output_tokens=2, total_tokens=7, cost=cost)
        output = StepOutput(step_id="s", mode=Mode.INFERENCE, agent="a", output="hi", usage=usage, seconds=7.25)
        trace: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
        return report.summary(output, trace)

    assert "2 tokens out, $0.0123, 7.2 s, model" in summary(0.0123)
    assert "cost not known" in summary(None)
