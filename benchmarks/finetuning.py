"""An epoch of ours against bare ``llama-finetune`` on the same model and the same text."""

import asyncio
import time
from pathlib import Path

from benchmarks.figure import Bench, Figure, median, spread
from storage.store import ObjectStore
from timestep.models.files import local_file
from training import dataset as datasets
from training import finetune
from training.learn import Job, Recipe, Workshop
from training.toolchain import ensure_toolchain

ROUNDS = 3
WINDOWS = 12
CONTEXT = 256
CONVERSATIONS = Path(__file__).resolve().parents[1] / "examples" / "conversations.jsonl"


async def measure(bench: Bench) -> list[Figure]:
    """Tokens per second of a few windows; loading the model and writing the result are in both."""
    tools = await ensure_toolchain(bench.settings, print)
    folder = bench.folder / "training"
    folder.mkdir()
    model = await local_file(bench.settings.model, bench.settings, None)
    f32 = await finetune.clone_to_f32(tools, model, folder / "f32.gguf")
    recipe = Recipe(dataset=str(CONVERSATIONS), context_length=CONTEXT)
    job = Job(run_id="benchmark", agent="bench", base=bench.settings.model, model=bench.settings.model, recipe=recipe)
    workshop = Workshop(job, bench.settings, ObjectStore.open(bench.settings.storage))
    prepared = await workshop.prepare()
    packed = datasets.Packed.model_validate_json(await workshop.store.get(prepared.windows))
    text = folder / "text.txt"
    text.write_text(packed.model_copy(update={"windows": packed.windows[:WINDOWS]}).text(0))
    threads = bench.settings.cores
    command = [tools.finetune, "--model", f32, "--file", text, "-o", folder / "bare.gguf", "-c", CONTEXT]
    command += ["-b", CONTEXT, "-ub", CONTEXT, "-t", threads, "-tb", threads, "-epochs", 1, "-val-split", 0]
    command += ["-lr", "1e-5", "-opt", "adamw"]
    ours, bare = [], []
    tokens = WINDOWS * CONTEXT
    for _ in range(ROUNDS):
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*map(str, command), stdout=-3, stderr=-3)
        assert await process.wait() == 0
        bare.append(tokens / (time.perf_counter() - started))
        result = await finetune.run_epoch(
            tools,
            f32,
            text,
            folder / "ours.gguf",
            epoch=1,
            context_length=CONTEXT,
            batch=0,
            learning_rate=1e-5,
            optimizer="adamw",
            threads=threads,
        )
        assert result.tokens == tokens, (result.tokens, tokens)
        ours.append(result.tokens / result.seconds)
    return [
        Figure(
            "training, an epoch without its checkpoint",
            spread(ours, "tokens/s"),
            f"bare llama-finetune {spread(bare, 'tokens/s')}",
            f"{median(ours) / median(bare):.2f}",
        )
    ]
