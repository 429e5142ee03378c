"""A training run, from a dataset to a registered model version, as units that each can be kept and skipped.

Knows no Prefect: the caller passes ``unit``, which records each unit's JSON. Everything a later unit
needs is in storage, so a run that was killed goes on in another process, or on another machine.
"""

import asyncio
import difflib
import json
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import gguf
from pydantic import BaseModel, ConfigDict

from storage.references import Reference
from storage.store import ObjectStore
from storage.traces import TraceStore
from timestep.errors import DatasetError, TimestepError, UsageError
from timestep.models.chat import ChatRenderer
from timestep.models.files import local_file
from timestep.models.registry import ModelRegistry, ModelVersion
from timestep.models.routing import CHECKPOINTS, FILES
from timestep.settings import Settings
from training import dataset as datasets
from training import finetune
from training.evaluate import Evaluation, better, evaluate
from training.folder import lock_folder, remove_abandoned
from training.lock import locked
from training.patches import mask_path
from training.tokenizer import Tokenizer
from training.toolchain import Toolchain, ensure_toolchain
from training.weights import embedding_type

Model = TypeVar("Model", bound=BaseModel)
Unit = Callable[[str, Any, Callable[[], Awaitable[Any]]], Awaitable[Any]]
TRACES = "traces"


class Recipe(BaseModel):
    """How to train. ``batch`` 0 is a whole window; ``quantization`` None keeps the served file's type."""

    model_config = ConfigDict(frozen=True)

    dataset: str = TRACES
    validation: str | None = None
    since_hours: float | None = None
    skip_bad_lines: bool = False
    epochs: int = 1
    learning_rate: float = 3e-5
    context_length: int = 1024
    batch: int = 0
    optimizer: str = "adamw"
    validation_split: float = 0.1
    quantization: str | None = None
    seed: int = 42


class Job(BaseModel):
    """One training run: its id, whose model, the file it starts from (a name, path, URL or stored object), the recipe.

    ``served_version`` is the version of ``model``, which the new one shall take the place of; None: the base.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    agent: str
    base: str
    model: str | Reference
    recipe: Recipe
    served_version: int | None = None


class Prepared(BaseModel):
    """The frozen dataset: packed windows and held-out conversations in storage, with their counts."""

    windows: Reference
    held_out: Reference
    window_count: int
    tokens: int
    conversations: int
    held_out_conversations: int
    cut: int
    skipped: list[str]


class Epoch(BaseModel):
    """A finished epoch and its checkpoint: an F32 model file in storage."""

    result: finetune.EpochResult
    checkpoint: Reference


class Learned(BaseModel):
    """What a training run came to."""

    version: ModelVersion
    promoted: bool
    prepared: Prepared
    epochs: list[Epoch]
    before: Evaluation
    after: Evaluation

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(epochs passed, loss in nats per token) over the whole run."""
        return [point for epoch in self.epochs for point in epoch.result.curve]


class Workshop:
    """The units of one training run. Each takes and returns what JSON can hold and works alone.

    ``say`` gets a short line when something slow begins, ``on_progress`` each step of an epoch.
    """

    def __init__(
        self,
        job: Job,
        settings: Settings,
        store: ObjectStore,
        *,
        say: Callable[[str], None] | None = None,
        on_progress: Callable[[finetune.EpochProgress], None] | None = None,
    ) -> None:
        self.job, self.settings, self.store = job, settings, store
        self.say = say or (lambda line: None)
        self.on_progress = on_progress
        self.folder = settings.cache_dir / "training" / job.run_id

    async def prepare(self) -> Prepared:
        """Load, split, render and pack the dataset, and keep all of it in storage."""
        recipe = self.job.recipe
        model = await self._served()
        finetune.check_window(recipe.context_length, recipe.batch, model)
        _check_type(recipe.quantization)
        loaded = await self._load(recipe.dataset, "dataset.jsonl")
        train, held_out = loaded.conversations, list[datasets.Conversation]()
        if recipe.validation is None:
            train, held_out = datasets.split(loaded.conversations, recipe.validation_split, recipe.seed)
        else:
            held_out = (await self._load(recipe.validation, "validation.jsonl")).conversations
        self.say(f"rendering {len(train)} conversations, {len(held_out)} held out")
        packed = await asyncio.to_thread(self._pack, model, train)
        if packed.cut:
            self.say(
                f"{packed.cut} conversations are longer than a window of {recipe.context_length} tokens: cut there"
            )
        lines = "".join(f"{conversation.model_dump_json()}\n" for conversation in held_out)
        return Prepared(
            windows=await self._keep(packed.model_dump_json(), "datasets", ".json"),
            held_out=await self._keep(lines, "datasets", ".jsonl"),
            window_count=len(packed.windows),
            tokens=packed.tokens,
            conversations=len(train),
            held_out_conversations=len(held_out),
            cut=packed.cut,
            skipped=loaded.skipped,
        )

    async def epoch(self, prepared: Prepared, number: int, previous: Reference | None) -> Epoch:
        """Train epoch ``number`` (from 1) on the checkpoint of the one before; its own checkpoint goes to storage."""
        recipe, tools = self.job.recipe, await self._tools()
        start = await self._checkpoint(tools, number - 1, previous)
        packed = datasets.Packed.model_validate_json(await self.store.get(prepared.windows))
        text, out = self.folder / f"epoch-{number}.txt", self._path(number)
        await asyncio.to_thread(text.write_text, packed.text(recipe.seed + number), encoding="utf-8")
        await asyncio.to_thread(mask_path(text).write_text, packed.mask(recipe.seed + number))
        async with self._cores():
            result = await finetune.run_epoch(
                tools,
                start,
                text,
                out,
                epoch=number,
                context_length=recipe.context_length,
                batch=recipe.batch,
                learning_rate=recipe.learning_rate,
                optimizer=recipe.optimizer,
                threads=self.settings.cores,
                on_progress=self.on_progress,
            )
        checkpoint = await self.store.put_content(out, prefix=f"{CHECKPOINTS}/{self.job.run_id}", suffix=".gguf")
        await asyncio.to_thread(start.unlink, missing_ok=True)
        return Epoch(result=result, checkpoint=checkpoint)

    async def candidate(self, last: Epoch) -> Reference:
        """The last checkpoint in the type that will be served, in storage."""
        tools, served = await self._tools(), await self._served()
        f32 = await self._checkpoint(tools, last.result.epoch, last.checkpoint)
        quantized = await self._quantized(tools, f32, served, "candidate")
        # Under the run's own id: nobody who deletes another version takes this one's file, equal as it may be.
        return await self.store.put_content(quantized, prefix=f"{FILES}/{self.job.run_id}", suffix=".gguf")

    async def before(self, prepared: Prepared) -> Evaluation:
        """How the version that training started from does on the held-out conversations, in the candidate's type."""
        return await self.rival(prepared, self.job.model)

    async def rival(self, prepared: Prepared, model: str | Reference) -> Evaluation:
        """The same of any model that may be served instead of the candidate."""
        served = await local_file(model, self.settings, self.store)
        if self.job.recipe.quantization not in (None, finetune.file_type(served)):
            tools = await self._tools()
            await asyncio.to_thread(self.folder.mkdir, parents=True, exist_ok=True)
            f32 = await finetune.clone_to_f32(tools, served, self.folder / "served-f32.gguf")
            served = await self._quantized(tools, f32, served, "served")
            await asyncio.to_thread(f32.unlink)
        return await self._evaluate(served, prepared, "the version served now")

    async def after(self, prepared: Prepared, candidate: Reference) -> Evaluation:
        """How the candidate does on the held-out conversations."""
        return await self._evaluate(await local_file(candidate, self.settings, self.store), prepared, "the new version")

    async def clean(self, epochs: list[Epoch]) -> None:
        """Forget the local files and all checkpoints but the last."""
        kept = epochs[-1].checkpoint.key
        for key in {epoch.checkpoint.key for epoch in epochs} - {kept}:
            if await self.store.exists(key):
                await self.store.delete(key)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def give_up(self) -> None:
        """After a failure: forget the local model files, which are large, and keep the tools' logs."""
        for path in await asyncio.to_thread(lambda: list(self.folder.glob("*.gguf"))):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _evaluate(self, model: Path, prepared: Prepared, what: str) -> Evaluation:
        self.say(f"evaluating {what} on {prepared.held_out_conversations} held-out conversations")
        # Bytes: splitting text would also end lines at separators such as U+2028, which JSON strings may hold.
        lines = (await self.store.get(prepared.held_out)).splitlines()
        held_out = [datasets.Conversation.model_validate_json(line) for line in lines]
        context_length = min(self.settings.context_length, finetune.longest_context(model))
        async with self._cores():
            return await evaluate(model, held_out, context_length=context_length, threads=self.settings.cores)

    async def _load(self, name: str, file: str) -> datasets.Loaded:
        recipe = self.job.recipe
        if name == TRACES:
            since = datetime.now(UTC) - timedelta(hours=recipe.since_hours) if recipe.since_hours else None
            return await datasets.load_traces(TraceStore(self.store), self.job.agent, since)
        path = Path(name)
        if not await asyncio.to_thread(path.is_file):
            if path.is_absolute() or not await self.store.exists(name):
                raise DatasetError(name, "no such file, and no such object in storage.")
            self.folder.mkdir(parents=True, exist_ok=True)
            path = await self.store.download(name, self.folder / file)
        return await datasets.load_jsonl(path, name, skip_bad=recipe.skip_bad_lines)

    def _pack(self, model: Path, train: list[datasets.Conversation]) -> datasets.Packed:
        renderer, recipe = ChatRenderer.from_file(model), self.job.recipe
        with closing(Tokenizer(model)) as tokenizer:
            rendered = []
            for conversation in train:
                try:
                    rendered.append(datasets.render(conversation, renderer, tokenizer.sequence))
                except UsageError as error:
                    why = f"'{conversation.source}' can't be rendered: {error}"
                    raise DatasetError(recipe.dataset, why) from error
            return datasets.pack(rendered, tokenizer, recipe.context_length, recipe.dataset)

    async def _keep(self, text: str, prefix: str, suffix: str) -> Reference:
        return await self.store.put_content(
            text.encode(), prefix=prefix, suffix=suffix, content_type="application/json"
        )

    def _cores(self) -> AbstractAsyncContextManager[None]:
        """The machine's cores, for one run at a time: llama.cpp gets far slower with more threads than cores."""
        return locked(
            self.settings.cache_dir / "cores.lock", lambda: self.say("waiting for the cores: another training has them")
        )

    async def _tools(self) -> Toolchain:
        return await ensure_toolchain(self.settings, self.say)

    async def _served(self) -> Path:
        return await local_file(self.job.model, self.settings, self.store)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}.gguf"

    async def _checkpoint(self, tools: Toolchain, epoch: int, reference: Reference | None) -> Path:
        """The local F32 file of an epoch: still there, or out of storage; epoch 0 is the served model."""
        path = self._path(epoch)
        await asyncio.to_thread(self.folder.mkdir, parents=True, exist_ok=True)
        if not path.exists():
            if reference is not None:
                return await self.store.download(reference, path)
            self.say("cloning the model to F32")
            return await finetune.clone_to_f32(tools, await self._served(), path)
        return path

    async def _quantized(self, tools: Toolchain, f32: Path, served: Path, name: str) -> Path:
        """``f32`` in the recipe's type; where it names none, in the types of the served file."""
        wanted = self.job.recipe.quantization
        type_name = wanted or finetune.file_type(served)
        embeddings = None if wanted else await asyncio.to_thread(embedding_type, served)
        self.say(f"quantising to {type_name}")
        return await finetune.quantize(tools, f32, self.folder / f"{name}.gguf", type_name, embeddings)


async def learn(
    workshop: Workshop,
    registry: ModelRegistry,
    promote: Literal["never", "if_better", "always"] = "if_better",
    unit: Unit | None = None,
) -> Learned:
    """Run all units in order, register the new version and promote it by the rule.

    ``unit(name, request, call)`` returns the recorded JSON of ``call`` for an equal request, or calls it.
    Raises DatasetError, UsageError, TrainingError, ToolchainError or StorageError; nothing is promoted then.
    """
    async with lock_folder(workshop.folder, lambda: workshop.say("waiting for another process that has this run")):
        await asyncio.to_thread(remove_abandoned, workshop.folder)
        try:
            return await _learn(workshop, registry, promote, unit or _always_call)
        except TimestepError:
            await workshop.give_up()
            raise


async def _learn(workshop: Workshop, registry: ModelRegistry, promote: str, keep: Unit) -> Learned:
    job = workshop.job
    facts = job.model_dump(mode="json")

    async def kept(name: str, kind: type[Model], request: Any, call: Callable[[], Awaitable[Model]]) -> Model:
        async def as_json() -> Any:
            return json.loads((await call()).model_dump_json())

        return kind.model_validate(await keep(name, request, as_json))

    prepared = await kept("prepare", Prepared, facts, workshop.prepare)
    epochs: list[Epoch] = []
    for number in range(1, job.recipe.epochs + 1):
        previous = epochs[-1].checkpoint if epochs else None
        request = [facts, prepared.windows.sha256, previous.sha256 if previous else None]
        train = _epoch(workshop, prepared, number, previous)
        epochs.append(await kept(f"epoch {number}", Epoch, request, train))
    last = epochs[-1]
    candidate = await kept("quantise", Reference, last.checkpoint.sha256, lambda: workshop.candidate(last))
    request = [facts, prepared.held_out.sha256]
    before = await kept("evaluate before", Evaluation, request, lambda: workshop.before(prepared))
    request = [*request, candidate.sha256]
    after = await kept("evaluate after", Evaluation, request, lambda: workshop.after(prepared, candidate))
    version = await registry.register(
        job.agent, candidate, job.base, job.run_id, {"before": before.model_dump(), "after": after.model_dump()}
    )
    learned = Learned(version=version, promoted=False, prepared=prepared, epochs=epochs, before=before, after=after)
    if promote != "never":
        # Recorded: a run that is resumed must not undo promotions made since.
        promoted = await keep(
            "promote", [promote, version.version], lambda: _promote(workshop, registry, promote, learned)
        )
        learned = learned.model_copy(update={"promoted": promoted})
    await workshop.clean(epochs)
    return learned


async def _promote(workshop: Workshop, registry: ModelRegistry, rule: str, learned: Learned) -> bool:
    """Promote the new version by the rule; says whether it was. Better is what beats the version served by now.

    That may be another than at the run's start: each that is promoted meanwhile is judged as well.
    """
    job, version = workshop.job, learned.version
    if rule == "always":
        return await registry.promote(job.agent, version.version)
    served, judged = job.served_version, learned.before
    while better(learned.after, judged):
        if await registry.promote(job.agent, version.version, instead_of=served):
            return True
        now = await registry.promoted(job.agent)
        if now and now.version == version.version:
            return True  # by this run, which was killed before it could record that
        served = now.version if now else None
        judged = await workshop.rival(learned.prepared, now.file if now else job.base)
    return False


def _epoch(
    workshop: Workshop, prepared: Prepared, number: int, previous: Reference | None
) -> Callable[[], Awaitable[Epoch]]:
    return lambda: workshop.epoch(prepared, number, previous)


async def _always_call(name: str, request: Any, call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


def _check_type(name: str | None) -> None:
    known = [kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType]
    if name is not None and name not in known:
        near = difflib.get_close_matches(name.upper(), known, n=1)
        raise UsageError(
            f"No quantization '{name}'.{f' Did you mean {near[0]}?' if near else ''} For example: Q8_0, Q4_1."
        )
