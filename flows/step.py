"""The flow everything goes through: one agent step, which thinks or learns by a switch in its input."""

from datetime import UTC, datetime
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run

from flows.support import Services, hold, let_go, publish, shown, storable
from flows.waiting import People, suspend_until_turn
from timestep.agents import report
from timestep.agents.record.attempt import Attempt
from timestep.agents.record.away import is_away, outlived
from timestep.agents.record.sessions import NotYourTurnError
from timestep.agents.record.waiting import Verdict
from timestep.agents.think import Thinking, deadline, think
from timestep.agents.types import InferenceSettings, Mode, StepOutput, TrainingSettings
from timestep.settings import load_settings

THINKING = InferenceSettings()
LEARNING = TrainingSettings()


@flow(
    name="step",
    flow_run_name="{agent}-{mode}",
    description="One agent step. In inference mode the agent runs; in training mode its model is fine-tuned, "
    "evaluated, and promoted if it is better.",
    persist_result=True,
    result_serializer="json",
    on_completion=[let_go],
    on_failure=[let_go],
)
async def step(
    input: Annotated[
        str | list[dict[str, Any]],
        shown("Input", "What the agent should do: text, or OpenAI-style input items."),
    ] = "",
    agent: Annotated[str, shown("Agent", "Name of a registered agent.")] = "assistant",
    mode: Annotated[Mode, shown("Mode", "inference: the agent thinks. training: its model learns.")] = Mode.INFERENCE,
    session_id: Annotated[str | None, shown("Session", "Steps of one session share their conversation.")] = None,
    model: Annotated[
        str | None,
        shown("Model", "Instead of the agent's own: local/NAME, local/NAME@VERSION, or a provider's model."),
    ] = None,
    max_turns: Annotated[int, shown("Max turns", "Most model calls of the step.", ge=1, le=100_000)] = 10,
    inference: Annotated[InferenceSettings, shown("Inference", "Used in inference mode.")] = THINKING,
    training: Annotated[TrainingSettings, shown("Training", "Used in training mode.")] = LEARNING,
) -> StepOutput:
    """Run one agent step; see the parameters' titles and descriptions."""
    step_id = str(flow_run.get_id())
    settings = load_settings()
    async with outlived():
        await hold(settings, step_id)
    services = Services.open(settings)
    async with outlived(), Attempt.begin(services.database, services.store, step_id) as attempt:
        attempt.events.publish("step.started", attempt=attempt.lease.attempt)
        try:
            if mode is Mode.TRAINING:
                from flows.learn import learn

                output = await learn(attempt, agent, model, training, services)
                output.seconds = round((datetime.now(UTC) - attempt.started).total_seconds(), 3)
            else:
                request = Thinking(step_id, input, agent, session_id, model, max_turns, inference)
                output = await _think(request, services, attempt)
            await attempt.confirm()
        except NotYourTurnError as error:
            await suspend_until_turn(services.database, attempt.lease, error.session_id)
        except Exception as error:
            if is_away(error):
                raise
            await attempt.confirm()
            attempt.events.publish("step.finished", status="failed", error=str(error))
            raise storable(error)  # noqa: B904  the same error, as a rule
        attempt.events.publish("step.finished", status="succeeded", output=output.output)
        return output


async def _think(request: Thinking, services: Services, attempt: Attempt) -> StepOutput:
    default = Verdict(request.inference.approval_default.value)
    people = People(services.database, attempt.lease, deadline(request.inference), default)
    output, trace = await think(request, services.settings, services.store, services.registry, attempt, people)
    await attempt.confirm()
    await publish(services.store, output, summary=report.summary(output, trace), turns=report.turns(trace))
    return output
