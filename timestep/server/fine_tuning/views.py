"""A fine-tuning job as OpenAI shows it: what Prefect says of its flow run, and the units of its training."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from openai.types.fine_tuning import FineTuningJob, SupervisedHyperparameters, SupervisedMethod
from openai.types.fine_tuning.fine_tuning_job import Error, Hyperparameters, Method
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.fine_tuning.jobs.fine_tuning_job_checkpoint import Metrics

from timestep.models.registry import EPOCH
from timestep.models.routing import PREFIX as LOCAL
from timestep.models.routing import checkpoint_id
from timestep.server import ids, run_lists
from timestep.server.fine_tuning.asked import LEARNING_RATE

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from timestep.database.engine import Database
    from timestep.database.models import UnitRow

TAG, PREFIX, KIND = "openai:fine_tuning", "ftjob-", "job"
PREPARE, METRICS, JUDGED = "training/prepare", "training/metrics", "training/evaluate-after"

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


class Job(FineTuningJob):
    """OpenAI's, with the status that its type has no name for."""

    status: Status  # type: ignore[assignment]


@dataclass
class Trained:
    """How far a job's training has come: its finished units, and the version that was made."""

    units: dict[str, UnitRow] = field(default_factory=dict)
    model: str | None = None
    deleted: bool = False  # that version, since

    @property
    def epochs(self) -> list[UnitRow]:
        """The finished epochs, in order."""
        found = [unit for position, unit in self.units.items() if position.startswith(EPOCH)]
        return sorted(found, key=lambda unit: int(unit.position.removeprefix(EPOCH)))


async def trained(database: Database, run_ids: Sequence[UUID]) -> dict[UUID, Trained]:
    """What is on record of each of these jobs."""
    from sqlalchemy import or_, select

    from timestep.database.models import ModelVersionRow, UnitRow

    found = {run_id: Trained() for run_id in run_ids}
    names = [str(run_id) for run_id in run_ids]
    wanted = or_(UnitRow.position.in_((PREPARE, METRICS, JUDGED)), UnitRow.position.startswith(EPOCH))
    finished = select(UnitRow).where(UnitRow.step_id.in_(names), UnitRow.finished_at.is_not(None), wanted)
    made = select(ModelVersionRow).where(ModelVersionRow.origin.in_(names))
    async with database.session() as session:
        for unit in await session.scalars(finished):
            found[UUID(unit.step_id)].units[unit.position] = unit
        for version in await session.scalars(made):
            done = found[UUID(str(version.origin))]
            done.model, done.deleted = f"{LOCAL}{version.name}@{version.version}", version.deleted_at is not None
    return found


async def views(database: Database, runs: Sequence[FlowRun]) -> list[Job]:
    """The jobs as they stand."""
    found = await trained(database, [run.id for run in runs])
    return [await _job(run, found[run.id]) for run in runs]


async def _job(run: FlowRun, done: Trained) -> Job:
    status, training = status_of(run, done), run.parameters["training"]
    succeeded, metrics = status == "succeeded", done.units.get(METRICS)
    ended = status in ("succeeded", "failed", "cancelled")
    multiplier = training["learning_rate"] / LEARNING_RATE
    settings: dict[str, Any] = {
        "n_epochs": training["epochs"],
        "batch_size": 1,
        "learning_rate_multiplier": round(multiplier, 6),
    }
    chosen = SupervisedMethod(hyperparameters=SupervisedHyperparameters(**settings))
    return Job(
        id=ids.object_id(PREFIX, run.id),
        object="fine_tuning.job",
        created_at=int(run.created.timestamp()) if run.created else 0,
        error=await _error(run) if status == "failed" else None,
        fine_tuned_model=done.model if succeeded else None,
        finished_at=int(run.end_time.timestamp()) if ended and run.end_time else None,
        hyperparameters=Hyperparameters(**settings),
        model=str(run.parameters["model"]),
        organization_id="timestep",
        result_files=[metrics.result] if succeeded and metrics and metrics.result else [],
        seed=training.get("seed", 42),
        status=status,
        trained_tokens=sum(unit.result["result"]["tokens"] for unit in done.epochs if unit.result) or None
        if ended
        else None,
        training_file=training["dataset"],
        validation_file=training.get("validation"),
        integrations=[],
        metadata=run_lists.metadata_of(run) or None,
        method=Method(type="supervised", supervised=chosen),
    )


def status_of(run: FlowRun, done: Trained) -> Status:
    """Where the job stands. One that crashed is running: the service starts it again."""
    from timestep.agents.record.step_view import StepStatus
    from timestep.steps.views import status_of as step_status

    if run.state is not None and run.state.is_paused():
        return "paused"
    if run.state is not None and run.state.is_cancelling():
        return "cancelled"
    match step_status(run, []):
        case StepStatus.SUCCEEDED:
            return "succeeded"
        case StepStatus.FAILED:
            return "failed"
        case StepStatus.CANCELLED:
            return "cancelled"
        case StepStatus.NOT_STARTED:
            return "queued"
    return "running" if PREPARE in done.units else "validating_files"


def checkpoints(run: FlowRun, done: Trained, stored: Container[str]) -> list[FineTuningJobCheckpoint]:
    """One for each finished epoch that can be asked, the last first.

    The last epoch's is the version that was made; the others can be asked while their objects are ``stored``, which
    is until the job has succeeded.
    """
    prepared = done.units.get(PREPARE)
    windows = prepared.result["window_count"] if prepared and prepared.result else 0
    found = []
    for unit in done.epochs:
        kept = unit.result or {}
        facts = kept["result"]
        number, step = facts["epoch"], facts["epoch"] * windows
        last = number == run.parameters["training"]["epochs"]
        version = done.model if last and not done.deleted else None
        if version is None and kept["checkpoint"]["key"] not in stored:
            continue
        name = checkpoint_id(run.id, number)
        found.append(
            FineTuningJobCheckpoint(
                id=name,
                object="fine_tuning.job.checkpoint",
                created_at=int(unit.finished_at.timestamp()) if unit.finished_at else 0,
                fine_tuned_model_checkpoint=version or f"{LOCAL}{name}",
                fine_tuning_job_id=ids.object_id(PREFIX, run.id),
                metrics=Metrics(
                    step=step,
                    train_loss=facts["loss"],
                    train_mean_token_accuracy=facts["accuracy"],
                    full_valid_loss=_valid_loss(done) if last else None,
                ),
                step_number=step,
            )
        )
    return found[::-1]


def _valid_loss(done: Trained) -> float | None:
    """The result's loss on the held-out conversations; it is what is measured of it as perplexity."""
    unit = done.units.get(JUDGED)
    perplexity = unit.result.get("perplexity") if unit is not None and unit.result else None
    return round(math.log(perplexity), 5) if perplexity else None


async def _error(run: FlowRun) -> Error:
    from timestep.steps.views import error_of

    training = run.parameters["training"]
    message = await error_of(run) or "It failed."
    for param, name in (("training_file", training["dataset"]), ("validation_file", training.get("validation"))):
        if name and name in message:
            return Error(code=f"invalid_{param}", message=message, param=param)
    return Error(code="training_failed", message=message)
