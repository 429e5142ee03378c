"""A step that learns, through the running service: real fine-tuning of a tiny model by llama.cpp."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import Service
from tests.flows.conftest import Steps, artifacts, task_states
from tests.flows.test_step_inference import store
from timestep.agents.types import StepOutput

QUICK = {"epochs": 2, "context_length": 256, "learning_rate": 1e-3, "validation_split": 0.25}


def recipe(service: Service, **changes: Any) -> dict[str, Any]:
    return {"dataset": str(service.dataset), **QUICK, **changes}


def served(service: Service, model: str) -> str:
    """The version that the HTTP API answers with for a model's name."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    response = httpx.post(f"{service.api}/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["model"])


async def test_agent_learns_and_serves_the_new_version_without_a_restart(service: Service, steps: Steps) -> None:
    assert "@" not in served(service, "local/classmate")
    run, output = await steps.run(agent="pupil", mode="training", training=recipe(service, promote="always"))
    outcome = output.training
    assert outcome is not None
    assert outcome.promoted
    assert outcome.model_version.startswith("local/pupil@")
    assert len(outcome.losses) == 2
    assert outcome.losses[1] < outcome.losses[0]
    assert outcome.perplexity_before is not None and outcome.perplexity_after is not None
    assert outcome.perplexity_after < outcome.perplexity_before
    assert outcome.tool_call_accuracy_after is not None
    assert outcome.held_out == 6 and outcome.conversations == 18
    assert served(service, "local/pupil") == outcome.model_version
    # What shares the base stays as it was.
    assert "@" not in served(service, "local/classmate")
    _, thought = await steps.run(input="hi", agent="pupil")
    assert thought.model == outcome.model_version
    shown = await artifacts(steps.client, run.id)
    assert {"summary", "objects", "training", "loss-curve"} <= set(shown)
    assert str(shown["loss-curve"]).startswith("data:image/svg+xml;base64,")
    assert float(str(shown["training"])) == 100
    names = [name for name, _ in await task_states(steps.client, run.id)]
    assert {"prepare", "epoch 1", "epoch 2", "quantise", "evaluate before", "evaluate after"} <= set(names)


async def test_never_promotes_where_told_so(service: Service, steps: Steps) -> None:
    before = served(service, "local/classmate")
    _, output = await steps.run(agent="classmate", mode="training", training=recipe(service, epochs=1, promote="never"))
    assert output.training is not None and not output.training.promoted
    assert served(service, "local/classmate") == before
    assert served(service, output.training.model_version) == output.training.model_version


async def test_training_killed_in_an_epoch_resumes_at_that_epoch(service: Service, steps: Steps) -> None:
    training = recipe(service, epochs=4, promote="never")
    run = await steps.start(agent="pupil", mode="training", training=training)
    async with asyncio.timeout(180):
        while (trainer := epoch_process(str(run.id), 3)) is None:
            await asyncio.sleep(0.005)
    flow_process = trainer.parent()
    assert flow_process is not None
    os.kill(flow_process.pid, signal.SIGKILL)
    # The service starts it again by itself.
    done = await steps.finished(run, 240)
    assert not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE
    outcome = (await steps.output(done)).training
    assert outcome is not None and len(outcome.losses) == 4
    states = await task_states(steps.client, run.id)
    # What had finished is answered from the record, without a task.
    assert [states.count((f"epoch {number}", "Completed")) for number in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert [name for name, _ in states].count("epoch 3") == 2


def epoch_process(run_id: str, epoch: int) -> psutil.Process | None:
    """The llama-finetune process of this run's epoch, while it runs."""
    for process in psutil.process_iter(["name", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "llama-finetune" in line and run_id in line and f"epoch-{epoch}" in line.rsplit("--file", 1)[-1]:
            return process
    return None


async def test_trains_on_the_agents_own_traces(service: Service, steps: Steps) -> None:
    for number in range(4):
        await steps.run(input=f"What is {number} plus {number}? " * 12, agent="classmate")
    training = {"dataset": "traces", **QUICK, "epochs": 1, "promote": "never"}
    _, output = await steps.run(agent="classmate", mode="training", training=training)
    assert output.training is not None
    assert output.training.conversations + output.training.held_out >= 4


async def test_agent_on_a_remote_model_is_refused(service: Service, steps: Steps) -> None:
    message = await steps.refused(agent="planner", mode="training", training=recipe(service))
    assert "only local models can learn" in message and "PlannedModel" in message


async def test_bad_line_is_named_and_nothing_is_trained(service: Service, steps: Steps, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = service.dataset.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"messages": "no list"}', *lines[1:]]))
    message = await steps.refused(agent="pupil", mode="training", training=recipe(service, dataset=str(path)))
    assert "line 2" in message
    _, output = await steps.run(
        agent="pupil",
        mode="training",
        training=recipe(service, dataset=str(path), epochs=1, skip_bad_lines=True, promote="never"),
    )
    assert output.training is not None and output.training.skipped_lines == 1


async def test_empty_absent_and_too_long_are_refused(service: Service, steps: Steps, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dataset": str(empty)}, "empty"),
        ({"dataset": str(tmp_path / "nowhere.jsonl")}, "nowhere.jsonl"),
        ({"context_length": 256 * 400}, "102400"),
        ({"quantization": "Q8_9"}, "Q8_0"),
    ]
    for changes, expected in cases:
        message = await steps.refused(agent="pupil", mode="training", training=recipe(service, **changes))
        assert expected in message, message


def test_cli_trains_and_prints_json(service: Service) -> None:
    arguments = ["train", "--agent", "pupil", "--dataset", str(service.dataset), "--context-length", "256"]
    done = service.run(*arguments, "--learning-rate", "1e-3", "--promote", "never", "--json")
    output = StepOutput.model_validate(json.loads(done.stdout))
    assert output.training is not None and output.training.losses
    assert "epoch 1" in done.stderr


async def test_artifacts_of_a_training_are_in_storage(service: Service, steps: Steps) -> None:
    _, output = await steps.run(agent="pupil", mode="training", training=recipe(service, epochs=1, promote="never"))
    assert {"model", "checkpoint", "held_out", "loss_curve"} <= set(output.artifacts)
    for reference in output.artifacts.values():
        assert await store(service).exists(reference.key)
