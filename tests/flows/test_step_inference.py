"""A step that thinks, through the running service: real worker, real database, real model where it matters."""

import asyncio
import json
from pathlib import Path
from typing import Any

from storage.store import ObjectStore
from storage.traces import TraceStore
from tests.conftest import Service
from tests.flows.conftest import Steps, artifacts, task_states, units
from timestep.agents.types import StepOutput


def store(service: Service) -> ObjectStore:
    return ObjectStore.open(f"local://{service.home}/storage")


async def test_every_model_and_tool_call_is_a_recorded_unit_and_a_task(service: Service, steps: Steps) -> None:
    service.clear_calls()
    run, output = await steps.run(input="go", agent="planner")
    assert output.output == "all done"
    assert [call.name for call in output.tool_calls] == ["remember"] * 3
    assert output.tool_calls[0].output == "remembered one"
    assert output.turns == 3
    # Two identical requests in one response are two calls.
    assert sorted(service.calls) == ["model 0", "model 1", "model 2", "tool one", "tool one", "tool two"]
    assert len(await units(service, run.id)) == 6
    async with asyncio.timeout(20):  # what Prefect shows of tasks comes by way of its events
        while [state for _, state in await task_states(steps.client, run.id)] != ["Completed"] * 6:
            await asyncio.sleep(0.2)


async def test_trace_holds_conversation_tools_and_calls(service: Service, steps: Steps) -> None:
    _, output = await steps.run(input="go", agent="planner")
    trace = await TraceStore(store(service)).read(output.artifacts["trace"])
    assert trace["status"] == "completed"
    assert trace["messages"][0] == {"role": "system", "content": "Plan."}
    assert trace["messages"][1] == {"role": "user", "content": "go"}
    assert trace["messages"][-1]["content"] == "all done"
    assert [tool["function"]["name"] for tool in trace["tools"]] == ["remember"]
    assert sorted(call["kind"] for call in trace["calls"]) == ["model"] * 3 + ["tool"] * 3


async def test_people_find_summary_turns_and_objects_in_the_ui(service: Service, steps: Steps) -> None:
    run, _ = await steps.run(input="go", agent="planner")
    shown = await artifacts(steps.client, run.id)
    assert {"summary", "turns", "objects"} <= set(shown)
    assert "all done" in str(shown["summary"])
    assert len(json.loads(str(shown["turns"]))) == 6


async def test_agents_as_tools_and_circular_handoffs_are_durable_too(service: Service, steps: Steps) -> None:
    service.clear_calls()
    run, output = await steps.run(input="go", agent="manager")
    assert output.output == "managed"
    assert "tool deep" in service.calls
    assert "manager/0/0/specialist/0/0" in await units(service, run.id)
    _, output = await steps.run(input="go", agent="sender")
    assert output.output == "received"


async def test_failing_tool_is_an_answer_for_the_model(steps: Steps) -> None:
    _, output = await steps.run(input="go", agent="clumsy")
    assert output.output == "it failed"
    assert "error occurred while running the tool" in str(output.tool_calls[0].output)


async def test_too_many_turns_fails_with_the_setting_to_raise(steps: Steps) -> None:
    message = await steps.refused(input="go", agent="looper", max_turns=3)
    assert "Agent 'looper' did not finish within 3 turns. Raise max_turns." in message


async def test_unknown_agent_is_named_with_the_nearest(steps: Steps) -> None:
    message = await steps.refused(input="go", agent="asistant")
    assert "No agent 'asistant'. Did you mean 'assistant'?" in message


async def test_unknown_model_is_named_with_the_nearest(steps: Steps) -> None:
    message = await steps.refused(input="go", model="local/asistant")
    assert "No model" in message and "assistant" in message


async def test_empty_input_is_refused(steps: Steps) -> None:
    empty: list[Any] = ["", " \n", []]
    for nothing in empty:
        assert "needs an input" in await steps.refused(input=nothing)


async def test_a_file_or_provider_that_is_none_is_named(service: Service, steps: Steps) -> None:
    (service.home / "page.gguf").write_text("<html>")
    cases = {
        str(service.home / "page.gguf"): "page.gguf",
        str(service.home / "nowhere.gguf"): "nowhere.gguf",
        "nobody/model": "No model 'nobody/model'",
    }
    for model, expected in cases.items():
        assert expected in await steps.refused(input="go", model=model)


async def test_failed_step_still_writes_its_trace(service: Service, steps: Steps) -> None:
    run = await steps.finished(await steps.start(input="go", agent="looper", max_turns=2))
    traces = [t async for _, t in TraceStore(store(service)).list("looper") if t["step_id"] == str(run.id)]
    assert traces[0]["status"] == "failed"
    assert "did not finish" in traces[0]["error"]
    assert len(traces[0]["messages"]) >= 3


async def test_steps_of_a_session_share_their_conversation(service: Service, steps: Steps) -> None:
    for _ in range(2):
        _, output = await steps.run(input="hello", agent="receiver", session_id="talk-1")
    trace = await TraceStore(store(service)).read(output.artifacts["trace"])
    assert [m["role"] for m in trace["messages"]] == ["user", "assistant", "user", "assistant"]


async def test_real_model_answers_and_tools_are_offered(service: Service, steps: Steps) -> None:
    _, output = await steps.run(input="Say hello.", inference={"max_tokens": 12})
    assert isinstance(output.output, str) and output.output
    assert output.usage.output_tokens > 0
    assert output.model == "smollm2-135m-instruct"
    trace = await TraceStore(store(service)).read(output.artifacts["trace"])
    assert "calculator" in [tool["function"]["name"] for tool in trace["tools"]]


async def test_demanded_tool_call_is_valid_and_says_that_it_was_forced(steps: Steps) -> None:
    _, output = await steps.run(
        input="What is 2+2?", max_turns=3, inference={"tool_choice": "required", "max_tokens": 60}
    )
    assert output.forced
    assert output.tool_calls
    json.loads(output.tool_calls[0].arguments)


def test_cli_prints_the_output_alone_on_stdout(service: Service) -> None:
    done = service.run("step", "go", "--agent", "planner")
    assert done.stdout == "all done\n"
    assert "remember" in done.stderr
    printed = json.loads(service.run("step", "go", "--agent", "planner", "--json").stdout)
    assert StepOutput.model_validate(printed).output == "all done"


def test_cli_error_is_one_line(service: Service) -> None:
    done = service.run("step", "go", "--agent", "asistant", check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("timestep: ") and "Did you mean 'assistant'?" in last
    assert "Traceback" not in done.stderr


def test_cli_names_a_value_that_the_form_would_not_take(service: Service) -> None:
    done = service.run("step", "go", "--mode", "traning", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "'traning' is not one of ['inference', 'training']" in done.stderr


def test_cli_without_a_service_names_up(tmp_path: Path) -> None:
    service = Service(tmp_path, 1, 1, tmp_path)
    done = service.run("step", "go", check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("Start one: timestep up")
    assert len(done.stderr.strip().splitlines()) == 1
