"""The training half of the step: the training room's units as persisted Prefect tasks, progress and artifacts."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from prefect.artifacts import acreate_image_artifact
from prefect.logging import get_run_logger

from flows.metrics import keep_metrics
from flows.origin import origin
from flows.pausing import unless_paused
from flows.progress import Progress, Told, progress_artifact
from flows.support import Services, publish
from storage.references import Reference
from timestep.agents import report
from timestep.agents.record.attempt import Attempt
from timestep.agents.record.away import prefect_reached
from timestep.agents.record.ledger import Begin, Ledger
from timestep.agents.record.units import fingerprint, unit
from timestep.agents.types import Mode, StepOutput, TrainingOutcome, TrainingSettings
from timestep.errors import TrainingError
from timestep.files import Files
from timestep.models.registry import ModelRegistry, ModelVersion
from timestep.models.routing import PREFIX
from training.curve import loss_curve_svg
from training.learn import Job, Learned, Recipe, Workshop
from training.learn import learn as run_units

FILE = "file-"  # the beginning of the id of a file of the HTTP API


async def learn(
    attempt: Attempt, agent: str, model: str | None, training: TrainingSettings, services: Services
) -> StepOutput:
    """Fine-tune the agent's own model, evaluate it, register the version, promote it by the rule.

    Raises:
        UsageError: the agent's model is not local, or the settings fit no model.
        DatasetError: what can't be trained on, and why.
        TrainingError: the trainer crashed, diverged or ran out of disk.
        Pause: a person paused the run.
    """
    training_to_its_end = _train(attempt, agent, model, training, services)
    served, learned = await unless_paused(
        attempt.lease, training_to_its_end, lambda: attempt.events.publish("training.paused")
    )
    ledger = attempt.ledger
    output = _output(ledger.step_id, agent, served, learned)
    if training.dataset.startswith(FILE):
        await keep_metrics(ledger, learned, services)
    picture = loss_curve_svg(learned.curve)
    stored = await services.store.put(f"steps/{ledger.step_id}/loss.svg", picture, content_type="image/svg+xml")
    output.artifacts["loss_curve"] = stored
    await ledger.check()
    await publish(services.store, output, summary=report.training_summary(output))
    with prefect_reached():
        await acreate_image_artifact(
            image_url=f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}",
            key="loss-curve",
            description="Training loss",
        )
    return output


async def _train(
    attempt: Attempt, agent: str, model: str | None, training: TrainingSettings, services: Services
) -> tuple[ModelVersion | None, Learned]:
    """The training's units: the version it started from, None for the base, and what was learned."""
    ledger = attempt.ledger
    try:
        registry = ModelRegistry(services.database)
        found = await origin(ledger, registry, services, agent, model, training.own_line)
        job = Job(
            run_id=ledger.step_id,
            agent=agent,
            base=found.base,
            model=found.start.file if found.start else found.base,
            served_version=found.served,
            recipe=await _recipe(training, services),
        )
        async with progress_artifact(Progress(job.recipe.epochs), "training") as progress:
            told = Told(attempt.events, progress)
            workshop = Workshop(job, services.settings, services.store, say=told.say, on_progress=told.step)
            return found.start, await run_units(workshop, registry, training.promote.value, _unit(ledger, told))
    except TrainingError as error:
        if error.log:
            get_run_logger().error("llama.cpp's last output:\n%s", error.log)
        raise


async def _recipe(training: TrainingSettings, services: Services) -> Recipe:
    """The recipe, with files of the HTTP API as the stored objects that they are."""
    files = Files(services.database, services.store)
    named = training.model_dump(mode="json", exclude={"promote", "own_line"})
    for part in ("dataset", "validation"):
        if named[part] is not None and named[part].startswith(FILE):
            named[part] = (await files.reference(named[part])).key
    return Recipe.model_validate(named)


def _unit(ledger: Ledger, told: Told) -> Callable[[str, Any, Callable[[], Awaitable[Any]]], Awaitable[Any]]:
    async def keep(name: str, request: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        kind = "epoch" if name.startswith("epoch") else "training"
        position = f"training/{name.replace(' ', '-')}"
        before = ledger.known(position)
        result = await unit(ledger, Begin(position, kind, name, fingerprint(request)), call)
        if before is None or not before.finished:
            told.done(kind, position, result)
        return result

    return keep


def _output(step_id: str, agent: str, served: ModelVersion | None, learned: Learned) -> StepOutput:
    name = f"{PREFIX}{agent}@{learned.version.version}"
    before, after, prepared = learned.before, learned.after, learned.prepared
    references: dict[str, Reference] = {
        "model": learned.version.file,
        "checkpoint": learned.epochs[-1].checkpoint,
        "held_out": prepared.held_out,
    }
    return StepOutput(
        step_id=step_id,
        mode=Mode.TRAINING,
        agent=agent,
        model=f"{PREFIX}{served.name}@{served.version}" if served else f"{PREFIX}{learned.version.base}",
        output=f"{name} {'promoted' if learned.promoted else 'not promoted'}",
        artifacts=references,
        training=TrainingOutcome(
            model_version=name,
            losses=[epoch.result.loss for epoch in learned.epochs],
            perplexity_before=before.perplexity,
            perplexity_after=after.perplexity,
            tool_call_accuracy_before=before.tool_call_accuracy,
            tool_call_accuracy_after=after.tool_call_accuracy,
            promoted=learned.promoted,
            seconds=sum(epoch.result.seconds for epoch in learned.epochs),
            tokens=sum(epoch.result.tokens for epoch in learned.epochs),
            conversations=prepared.conversations,
            held_out=prepared.held_out_conversations,
            cut=prepared.cut,
            skipped_lines=len(prepared.skipped),
        ),
    )
