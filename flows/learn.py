"""The training half of the step: the training room's units as persisted Prefect tasks, progress and artifacts."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from prefect.artifacts import acreate_image_artifact
from prefect.logging import get_run_logger

from flows.progress import progress_artifact
from flows.support import Services, publish
from storage.references import Reference
from timestep.agents import report
from timestep.agents.record.away import prefect_reached
from timestep.agents.record.ledger import Begin, Ledger
from timestep.agents.record.units import fingerprint, unit
from timestep.agents.types import Mode, StepOutput, TrainingOutcome, TrainingSettings
from timestep.errors import TrainingError, UsageError
from timestep.models.registry import ModelRegistry, ModelVersion
from timestep.models.routing import PREFIX
from training.curve import loss_curve_svg
from training.learn import Job, Learned, Recipe, Workshop
from training.learn import learn as run_units


async def learn(
    ledger: Ledger, agent: str, model: str | None, training: TrainingSettings, services: Services
) -> StepOutput:
    """Fine-tune the agent's own model, evaluate it, register the version, promote it by the rule.

    Raises:
        UsageError: the agent's model is not local, or the settings fit no model.
        DatasetError: what can't be trained on, and why.
        TrainingError: the trainer crashed, diverged or ran out of disk.
    """
    base = _base(services, agent, model)
    served, learned = await _train(ledger, agent, base, model, training, services)
    output = _output(ledger.step_id, agent, served, learned)
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
    ledger: Ledger, agent: str, base: str, model: str | None, training: TrainingSettings, services: Services
) -> tuple[ModelVersion | None, Learned]:
    """The training's units: the version it started from, None for the base, and what was learned."""
    try:
        registry = ModelRegistry(services.database)
        await registry.declare(agent, base)
        served = await _served(ledger, registry, agent, model)
        recipe = Recipe.model_validate(training.model_dump(mode="json", exclude={"promote"}))
        job = Job(
            run_id=ledger.step_id,
            agent=agent,
            base=base,
            model=served.file if served else base,
            served_version=served.version if served else None,
            recipe=recipe,
        )
        async with progress_artifact(recipe.epochs) as progress:
            workshop = Workshop(job, services.settings, services.store, say=progress.say, on_progress=progress.epoch)
            return served, await run_units(workshop, registry, training.promote.value, _unit(ledger))
    except TrainingError as error:
        if error.log:
            get_run_logger().error("llama.cpp's last output:\n%s", error.log)
        raise


def _base(services: Services, agent: str, model: str | None) -> str:
    base = services.registry.base(agent)
    if base is None:
        named = services.registry.get(agent).model
        shown = named if isinstance(named, str) else type(named).__name__
        if shown.startswith(PREFIX):
            raise UsageError(f"Agent '{agent}' is on another agent's model, '{shown}': train that agent instead.")
        raise UsageError(f"Agent '{agent}' runs on '{shown}', which is not a local model: only local models can learn.")
    if model is not None and model.removeprefix(PREFIX).partition("@")[0] != agent:
        raise UsageError(f"Training starts from the agent's own model, not from '{model}'. Say local/{agent}@VERSION.")
    return base


async def _served(ledger: Ledger, registry: ModelRegistry, agent: str, model: str | None) -> ModelVersion | None:
    """The version that training starts from; recorded, since another run may promote before this one resumes."""
    version = (model or "").partition("@")[2]

    async def call() -> Any:
        if version:
            if not version.isdigit():
                raise UsageError(f"No version '{version}'. Versions are numbers, as in local/{agent}@3.")
            found: ModelVersion | None = await registry.get(agent, int(version))
        else:
            found = await registry.promoted(agent)
        return found and found.model_dump(mode="json")

    recorded = await unit(ledger, Begin("training/served", "training", "served version", fingerprint(model)), call)
    return None if recorded is None else ModelVersion.model_validate(recorded)


def _unit(ledger: Ledger) -> Callable[[str, Any, Callable[[], Awaitable[Any]]], Awaitable[Any]]:
    async def keep(name: str, request: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        kind = "epoch" if name.startswith("epoch") else "training"
        position = f"training/{name.replace(' ', '-')}"
        return await unit(ledger, Begin(position, kind, name, fingerprint(request)), call)

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
        model=f"{PREFIX}{agent}@{served.version}" if served else f"{PREFIX}{learned.version.base}",
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
