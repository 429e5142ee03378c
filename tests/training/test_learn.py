"""A whole training run on the tiny model: what it leaves, how it goes on after a kill, and what it refuses."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from storage.references import Reference
from storage.store import ObjectStore
from storage.traces import TraceStore
from tests.tiny_model import tiny_model
from tests.training.conftest import talk
from timestep.errors import DatasetError, TimestepError, TrainingError, UsageError
from timestep.models.files import local_file
from timestep.models.registry import ModelRegistry, ModelVersion
from timestep.settings import Settings
from training import learn as learning
from training.finetune import EpochProgress, file_type
from training.learn import Job, Learned, Recipe, Workshop, learn
from training.tokenizer import Tokenizer

Write = Callable[[int], Path]


class Registry(ModelRegistry):
    """The registry's verbs that training uses, in memory; the real one's tests are its own."""

    def __init__(self) -> None:
        self.registered: list[ModelVersion] = []
        self.promotions: list[int] = []

    async def register(
        self, name: str, file: Reference, base: str, origin: str | None = None, evaluation: dict[str, Any] | None = None
    ) -> ModelVersion:
        if made := next((version for version in self.registered if version.origin == origin), None):
            return made
        facts: dict[str, Any] = {"name": name, "file": file, "base": base, "origin": origin}
        facts |= {"version": len(self.registered) + 1, "evaluation": evaluation or {}, "created_at": datetime.now(UTC)}
        self.registered.append(ModelVersion(**facts))
        return self.registered[-1]

    async def promote(self, name: str, version: int, instead_of: int | Literal["any"] | None = "any") -> bool:
        if instead_of not in ("any", self.promotions[-1] if self.promotions else None):
            return False
        self.promotions.append(version)
        return True

    async def promoted(self, name: str) -> ModelVersion | None:
        return self.registered[self.promotions[-1] - 1] if self.promotions else None


class Records:
    """Keeps each unit's JSON, as the flow does; ``die_at`` names the unit at whose start the process is killed."""

    def __init__(self, die_at: str | None = None) -> None:
        self.kept: dict[str, Any] = {}
        self.die_at = die_at
        self.called: list[str] = []

    async def __call__(self, name: str, request: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        key = json.dumps([name, request], sort_keys=True)
        if key not in self.kept:
            if name == self.die_at:
                raise KeyboardInterrupt(name)
            self.called.append(name)
            self.kept[key] = json.loads(json.dumps(await call()))
        return self.kept[key]

    def forget(self, name: str) -> None:
        """As if the process had been killed before it could record the unit."""
        self.kept = {key: kept for key, kept in self.kept.items() if json.loads(key)[0] != name}


@pytest.fixture
def job(tiny: Path, dataset: Write) -> Job:
    """Two epochs of the tiny model on 24 conversations."""
    recipe = Recipe(dataset=str(dataset(24)), epochs=2, context_length=256, learning_rate=1e-3)
    return Job(run_id="run-1", agent="assistant", base="tiny", model=str(tiny), recipe=recipe)


def _with(job: Job, **changes: Any) -> Job:
    return job.model_copy(update={"recipe": job.recipe.model_copy(update=changes)})


async def test_a_run_registers_a_better_version_and_keeps_one_checkpoint(
    job: Job, settings: Settings, store: ObjectStore, tiny: Path
) -> None:
    registry, seen, said = Registry(), list[EpochProgress](), list[str]()
    workshop = Workshop(job, settings, store, say=said.append, on_progress=seen.append)
    learned = await learn(workshop, registry)

    first, second = (epoch.result for epoch in learned.epochs)
    assert second.loss < first.loss
    assert [progress.epoch for progress in seen] == [1] * 22 + [2] * 22
    assert learned.before.perplexity and learned.after.perplexity
    assert learned.after.perplexity < learned.before.perplexity
    assert (learned.before.conversations, learned.before.tool_calls, learned.prepared.conversations) == (2, 2, 22)
    assert learned.promoted and registry.promotions == [1]
    (version,) = registry.registered
    assert (version.name, version.base, version.origin) == ("assistant", "tiny", "run-1")
    assert version.evaluation["after"] == learned.after.model_dump()
    assert file_type(await local_file(version.file, settings, store)) == "Q8_0"
    assert [stat.key async for stat in store.list("checkpoints/")] == [learned.epochs[-1].checkpoint.key]
    assert not workshop.folder.exists()
    assert len(learned.curve) == 44
    assert any("2 held-out conversations" in line for line in said)
    assert Learned.model_validate_json(learned.model_dump_json()) == learned


async def test_a_killed_run_goes_on_at_the_epoch_it_was_in(job: Job, settings: Settings, store: ObjectStore) -> None:
    job, records = _with(job, epochs=3), Records("epoch 3")
    with pytest.raises(KeyboardInterrupt):
        await learn(Workshop(job, settings, store), Registry(), unit=records)
    assert records.called == ["prepare", "epoch 1", "epoch 2"]

    # The next process has neither the local files nor the dataset: what is finished lies in storage.
    shutil.rmtree(settings.cache_dir)
    await _forget(job.recipe.dataset)
    records.die_at, seen = None, list[EpochProgress]()
    learned = await learn(Workshop(job, settings, store, on_progress=seen.append), Registry(), unit=records)
    assert {progress.epoch for progress in seen} == {3}, "finished epochs are not trained again"
    losses = [epoch.result.loss for epoch in learned.epochs]
    assert losses[2] < losses[1] < losses[0]

    records.called.clear()
    again = await learn(Workshop(job, settings, store), Registry(), unit=records)
    assert (again.epochs, records.called) == (learned.epochs, [])


async def _forget(path: str) -> None:
    Path(path).unlink()


async def test_a_run_that_fails_keeps_its_log_and_no_model(
    job: Job, settings: Settings, store: ObjectStore, models: Path
) -> None:
    broken = job.model_copy(update={"model": str(tiny_model(models, "F32", scale=1e30))})
    workshop, registry = Workshop(broken, settings, store), Registry()
    with pytest.raises(TrainingError, match=r"The loss became -?nan"):
        await learn(workshop, registry, "always")
    assert "epoch-1.log" in _names(workshop.folder) and not any(
        name.endswith(".gguf") for name in _names(workshop.folder)
    )
    assert not registry.registered and not registry.promotions


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_held_out_conversations_are_never_trained_on(job: Job, settings: Settings, store: ObjectStore) -> None:
    prepared = await Workshop(_with(job, validation_split=0.25), settings, store).prepare()
    held_out = [json.loads(line) for line in (await store.get(prepared.held_out)).splitlines()]
    windows = (await store.get(prepared.windows)).decode()
    assert len(held_out) == 6
    for line in held_out:
        assert line["messages"][0]["content"] not in windows
    assert windows.count("What is ") == prepared.conversations == 18


async def test_line_separators_within_a_conversation_end_no_line(
    job: Job, settings: Settings, store: ObjectStore
) -> None:
    path = Path(job.recipe.dataset)
    path.write_text(path.read_text().replace("What is", "\u2028What\u2029is\x85"), encoding="utf-8")
    workshop = Workshop(job, settings, store)
    prepared = await workshop.prepare()
    assert (await workshop.before(prepared)).conversations == prepared.held_out_conversations == 2


@pytest.mark.parametrize(("rule", "promoted"), [("never", False), ("always", True), ("if_better", False)])
async def test_the_rule_decides_on_promotion(
    job: Job, settings: Settings, store: ObjectStore, rule: Any, promoted: bool
) -> None:
    # Without held-out conversations nothing shows that the new version is better.
    job, registry = _with(job, epochs=1, validation_split=0.0), Registry()
    learned = await learn(Workshop(job, settings, store), registry, rule)
    assert (learned.promoted, bool(registry.promotions), len(registry.registered)) == (promoted, promoted, 1)
    assert learned.before.perplexity is None


async def test_what_was_promoted_meanwhile_is_what_the_new_version_must_beat(
    job: Job, settings: Settings, store: ObjectStore
) -> None:
    runs: dict[str, tuple[Workshop, Records]] = {}
    for run_id, rate in (("weak", 1e-4), ("strong", 1e-3)):
        started = _with(job, epochs=1, learning_rate=rate).model_copy(update={"run_id": run_id})
        runs[run_id] = Workshop(started, settings, store), Records("promote")
        with pytest.raises(KeyboardInterrupt):
            await learn(runs[run_id][0], Registry(), unit=runs[run_id][1])

    async def promoted(*order: str) -> list[bool]:
        registry, done = Registry(), list[bool]()
        for workshop, records in (runs[run_id] for run_id in order):
            records.die_at = None
            records.forget("promote")
            done.append((await learn(workshop, registry, unit=records)).promoted)
        return done

    assert await promoted("weak", "strong") == [True, True]
    assert await promoted("strong", "weak") == [True, False]


@pytest.mark.parametrize("rule", ["if_better", "always"])
async def test_a_run_promotes_once(job: Job, settings: Settings, store: ObjectStore, rule: Any) -> None:
    job, registry, records = _with(job, epochs=1), Registry(), Records()
    await learn(Workshop(job, settings, store), registry, rule, records)
    await registry.promote("assistant", 7)
    resumed = await learn(Workshop(job, settings, store), registry, rule, records)
    assert resumed.promoted and registry.promotions == [1, 7]


async def test_a_run_killed_right_after_it_promoted_has_promoted(
    job: Job, settings: Settings, store: ObjectStore
) -> None:
    job, registry, records = _with(job, epochs=1), Registry(), Records()
    for _ in range(2):
        learned = await learn(Workshop(job, settings, store), registry, unit=records)
        assert learned.promoted and registry.promotions == [1]
        records.forget("promote")


async def test_runs_take_turns_with_the_cores(job: Job, settings: Settings, store: ObjectStore) -> None:
    said = list[str]()
    workshop = Workshop(job, settings, store, say=said.append)
    prepared = await workshop.prepare()
    for work in (lambda: workshop.epoch(prepared, 1, None), lambda: workshop.before(prepared)):
        said.clear()
        with lock_holder(settings.cache_dir / "cores.lock") as other:
            working = asyncio.ensure_future(work())
            while not (working.done() or any("waiting for the cores" in line for line in said)):
                await asyncio.sleep(0.05)
            assert not working.done(), "it began while another process computes"
            other.kill()
            await working
        assert len([line for line in said if "waiting" in line]) == 1


async def test_a_run_removes_what_others_left_behind_a_week_ago(
    job: Job, settings: Settings, store: ObjectStore
) -> None:
    day = 24 * 3600
    folder = Workshop(job, settings, store).folder
    for name, age in (("killed", 8 * day), ("living", 8 * day), ("recent", 6 * day), (job.run_id, 8 * day)):
        other = folder.with_name(name)
        other.mkdir(parents=True)
        (other / "lock").touch()
        (other / "epoch-1.gguf").write_bytes(b"")
        os.utime(other, (time.time() - age,) * 2)
    with lock_holder(folder.with_name("living") / "lock"), pytest.raises(DatasetError):
        await learn(Workshop(_with(job, dataset="/nowhere.jsonl"), settings, store), Registry())
    assert {path.name for path in folder.parent.iterdir()} == {"living", "recent", job.run_id}


async def test_a_run_that_another_process_has_waits_for_it(job: Job, settings: Settings, store: ObjectStore) -> None:
    said = list[str]()
    workshop = Workshop(_with(job, epochs=1), settings, store, say=said.append)
    with lock_holder(workshop.folder / "lock") as other:
        run = asyncio.ensure_future(learn(workshop, Registry()))
        while not (said or run.done()):
            await asyncio.sleep(0.05)
        assert said == ["waiting for another process that has this run"]
        other.kill()
        await run


async def test_the_tokenizer_is_freed(
    job: Job, settings: Settings, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = list[Tokenizer]()

    class Watched(Tokenizer):
        def close(self) -> None:
            super().close()
            freed.append(self)

    monkeypatch.setattr(learning, "Tokenizer", Watched)
    await Workshop(job, settings, store).prepare()
    assert len(freed) == 1
    with pytest.raises(DatasetError):
        await Workshop(_with(job, context_length=1024, validation_split=0.9), settings, store).prepare()
    assert len(freed) == 2


@contextmanager
def lock_holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``path`` until it is killed."""
    code = (
        "import fasteners, sys, time; lock = fasteners.InterProcessLock(sys.argv[1]);"
        "lock.acquire() and print(flush=True); time.sleep(600)"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


async def test_another_type_is_judged_against_the_served_model_in_that_type(
    job: Job, settings: Settings, store: ObjectStore
) -> None:
    learned = await learn(Workshop(_with(job, epochs=1, quantization="Q4_0"), settings, store), Registry())
    assert file_type(await local_file(learned.version.file, settings, store)) == "Q4_0"
    same = await Workshop(job, settings, store).before(learned.prepared)
    assert learned.before.perplexity != same.perplexity
    elsewhere = Workshop(_with(job, quantization="Q4_0"), settings, store)
    assert (await elsewhere.before(learned.prepared)).perplexity == learned.before.perplexity


async def test_traces_of_the_agent_are_a_dataset(job: Job, settings: Settings, store: ObjectStore) -> None:
    for number in range(8):
        now = datetime.now(UTC)
        trace = {"mode": "inference", "status": "completed", "started": now.isoformat(), **talk(number, 7)}
        await TraceStore(store).write(trace, agent="assistant", step_id=str(number), when=now)
    prepared = await Workshop(_with(job, dataset="traces", since_hours=1.0), settings, store).prepare()
    assert (prepared.conversations, prepared.held_out_conversations) == (7, 1)


async def test_a_stored_object_is_a_dataset(job: Job, settings: Settings, store: ObjectStore) -> None:
    await store.put("files/talks.jsonl", Path(job.recipe.dataset))
    prepared = await Workshop(_with(job, dataset="files/talks.jsonl"), settings, store).prepare()
    assert prepared.conversations == 22


REFUSALS: list[tuple[dict[str, Any], type[TimestepError], str]] = [
    ({"context_length": 2048}, UsageError, "Context length 2048 is longer than the model's, which is 1024."),
    ({"context_length": 100}, UsageError, "Context length 100 is no multiple of 256."),
    ({"quantization": "q8_0"}, UsageError, "No quantization 'q8_0'. Did you mean Q8_0?"),
    ({"dataset": "/nowhere.jsonl"}, DatasetError, "Dataset '/nowhere.jsonl': no such file"),
    (
        {"dataset": "nowhere.jsonl"},
        DatasetError,
        "Dataset 'nowhere.jsonl': no such file, and no such object in storage.",
    ),
    ({"context_length": 1024, "validation_split": 0.9}, DatasetError, "fewer than one context of 1024."),
]


@pytest.mark.parametrize(("changes", "kind", "sentence"), REFUSALS)
async def test_what_cannot_be_trained_is_refused_before_anything_is_built(
    job: Job, settings: Settings, store: ObjectStore, changes: dict[str, Any], kind: type[TimestepError], sentence: str
) -> None:
    registry = Registry()
    with pytest.raises(kind) as caught:
        await learn(Workshop(_with(job, **changes), settings, store), registry)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not registry.registered


async def test_a_bad_line_trains_on_nothing_unless_it_may_be_skipped(
    job: Job, settings: Settings, store: ObjectStore
) -> None:
    path = Path(job.recipe.dataset)
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(DatasetError, match=r"line 25: it has no 'messages'\."):
        await Workshop(job, settings, store).prepare()
    prepared = await Workshop(_with(job, skip_bad_lines=True), settings, store).prepare()
    assert (prepared.conversations, len(prepared.skipped)) == (22, 1)
