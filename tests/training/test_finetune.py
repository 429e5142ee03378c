"""Fine-tuning by llama.cpp's own tool: what an epoch leaves behind, and what its accidents do."""

import asyncio
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import llama_cpp
import psutil
import pytest

from tests.tiny_model import tiny_model
from tests.training.conftest import talk
from timestep.errors import TrainingError, UsageError
from timestep.models.chat import ChatRenderer
from timestep.models.gguf import GGUFHeader
from training import finetune
from training.dataset import Conversation, pack, render
from training.evaluate import evaluate
from training.finetune import EpochProgress, EpochResult, clone_to_f32, file_type, quantize, run_epoch
from training.patches import mask_path
from training.tokenizer import Tokenizer
from training.toolchain import Toolchain
from training.weights import embedding_type

Run = Callable[..., Awaitable[EpochResult]]


@pytest.fixture
def text(tmp_path: Path, tiny_f32: Path) -> Path:
    """A packed text of ten windows."""
    return _packed(tmp_path, tiny_f32, [Conversation(**talk(k, k + 1)) for k in range(10)])


def _packed(folder: Path, model: Path, conversations: list[Conversation]) -> Path:
    renderer, tokenizer = ChatRenderer.from_file(model), Tokenizer(model)
    packed = pack([render(line, renderer, tokenizer.sequence) for line in conversations], tokenizer, 256, "d")
    path = folder / "text"
    path.write_text(packed.text(0))
    mask_path(path).write_text(packed.mask(0))
    return path


async def test_the_loss_is_that_of_the_answers_alone(run: Run, tmp_path: Path, tiny_f32: Path) -> None:
    one = Conversation(**talk(4, 5))
    _packed(tmp_path, tiny_f32, [one, one])
    seen: list[EpochProgress] = []
    await run(on_progress=seen.append)
    judged = await evaluate(tiny_f32, [one], context_length=256, threads=2)
    assert judged.perplexity is not None
    # The first window's loss is measured before anything is learnt.
    assert seen[0].loss == pytest.approx(math.log(judged.perplexity), abs=0.01)


@pytest.fixture
def run(toolchain: Toolchain, tiny_f32: Path, text: Path, tmp_path: Path) -> Run:
    """Runs an epoch of the tiny model into tmp_path/out.gguf, or with what is named instead."""

    def start(
        out: Path = tmp_path / "out.gguf",
        tools: Toolchain = toolchain,
        model: Path = tiny_f32,
        on_progress: Callable[[EpochProgress], None] | None = None,
        batch: int = 0,
        learning_rate: float = 1e-3,
        epoch: int = 1,
    ) -> Awaitable[EpochResult]:
        return run_epoch(
            tools,
            model,
            text,
            out,
            epoch=epoch,
            context_length=256,
            batch=batch,
            learning_rate=learning_rate,
            optimizer="adamw",
            threads=2,
            on_progress=on_progress,
        )

    return start


def _scripted(toolchain: Toolchain, tmp_path: Path, script: str) -> Toolchain:
    path = tmp_path / "llama-finetune"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return toolchain.model_copy(update={"finetune": path})


async def test_an_epoch_lowers_the_loss_and_reports_itself(run: Run, tmp_path: Path) -> None:
    seen: list[EpochProgress] = []
    first = await run(on_progress=seen.append)
    assert [progress.windows_done for progress in seen] == list(range(1, 11))
    assert all(progress.windows == 10 and 0 <= progress.accuracy <= 1 for progress in seen)
    assert (first.tokens, len(first.curve), first.curve[-1][0]) == (2560, 10, 1.0)
    second = await run(model=tmp_path / "out.gguf", out=tmp_path / "second.gguf", epoch=2)
    assert second.loss < first.loss < 10.9
    assert second.curve[0][0] == pytest.approx(1.1)


async def test_a_checkpoint_is_a_whole_model_with_the_originals_metadata(
    run: Run, tiny_f32: Path, tmp_path: Path
) -> None:
    await run()
    trained, base = GGUFHeader.read(tmp_path / "out.gguf"), GGUFHeader.read(tiny_f32)
    assert trained.metadata == base.metadata, "the chat template and the context length survive"
    assert _names(tmp_path, "out*") == ["out.gguf", "out.log"]


async def test_quantised_back_it_has_the_served_files_types(
    run: Run, toolchain: Toolchain, tiny: Path, tmp_path: Path
) -> None:
    assert (file_type(tiny), embedding_type(tiny)) == ("Q8_0", "Q8_0")
    f32 = await clone_to_f32(toolchain, tiny, tmp_path / "f32.gguf")
    assert file_type(f32) == "F32"
    await run(model=f32)
    back = await quantize(toolchain, tmp_path / "out.gguf", tmp_path / "back.gguf", "Q8_0", "Q8_0")
    assert (file_type(back), embedding_type(back)) == ("Q8_0", "Q8_0")
    assert _size(back) == pytest.approx(_size(tiny), abs=100)
    llama = llama_cpp.Llama(str(back), n_ctx=256, verbose=False, n_threads=1)
    assert len(list(llama.create_completion("hi", max_tokens=2, stream=True))) >= 2


def _size(path: Path) -> int:
    return path.stat().st_size


def _names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


async def test_smaller_batches_still_count_windows(run: Run) -> None:
    seen: list[EpochProgress] = []
    result = await run(batch=128, on_progress=seen.append)
    assert (seen[-1].windows_done, seen[-1].windows, result.tokens) == (10, 10, 2560)


async def test_a_type_nobody_knows_is_refused(toolchain: Toolchain, tiny_f32: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No quantization 'Q99'"):
        await quantize(toolchain, tiny_f32, tmp_path / "x.gguf", "Q99")


async def test_a_killed_trainer_is_named_and_its_output_kept(run: Run, tmp_path: Path) -> None:
    def kill(progress: EpochProgress) -> None:
        for child in psutil.Process().children():
            if child.name() == "llama-finetune":
                child.send_signal(signal.SIGKILL)

    with pytest.raises(
        TrainingError, match=r"was killed by SIGKILL in epoch 1\. Its output is kept in '.*out\.log'\."
    ) as caught:
        await run(on_progress=kill)
    assert "loss=" in caught.value.log
    assert "loss=" in (tmp_path / "out.log").read_text()
    assert not (tmp_path / "out.gguf").exists()


async def test_a_crashed_trainer_is_named_and_its_output_kept(run: Run, toolchain: Toolchain, tmp_path: Path) -> None:
    tools = _scripted(toolchain, tmp_path, "echo GGML_ASSERT failed >&2; exit 134")
    with pytest.raises(TrainingError, match=r"llama-finetune exited with code 134 in epoch 2\.") as caught:
        await run(tools=tools, epoch=2)
    assert caught.value.log == "GGML_ASSERT failed"
    assert (tmp_path / "out.log").read_text() == "GGML_ASSERT failed\n"


async def test_a_loss_that_is_no_number_stops_at_once(run: Run, models: Path, tmp_path: Path) -> None:
    seen: list[EpochProgress] = []
    broken = tiny_model(models, "F32", scale=1e30)
    with pytest.raises(
        TrainingError, match=r"The loss became -?nan in epoch 1, window \d of 10.* Lower the learning rate"
    ):
        await run(model=broken, on_progress=seen.append)
    assert len(seen) < 3 and not (tmp_path / "out.gguf").exists()
    assert not _trainers()


async def test_cancelling_stops_the_trainer(run: Run, tmp_path: Path) -> None:
    begun = asyncio.Event()
    running = asyncio.ensure_future(run(on_progress=lambda progress: begun.set()))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not _trainers() and _names(tmp_path, "out*") == ["out.log"]


def _trainers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name() == "llama-finetune"]


async def test_a_disk_without_room_is_named_before_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=20_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(
        TrainingError, match=r"Out of disk: the checkpoint of epoch 1 needs 29 MB, '.*' has 20 MB free\."
    ):
        await run()


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
async def test_a_checkpoint_that_could_not_be_written_whole_is_no_checkpoint(
    run: Run, toolchain: Toolchain, tmp_path: Path
) -> None:
    # The write fails as on a full disk, and llama-finetune ends well all the same.
    limited = f"trap '' XFSZ; ulimit -f 8000; exec {toolchain.finetune} \"$@\""
    with pytest.raises(
        TrainingError, match=r"Out of disk: '.*' has \d+ MB free, and 'out.raw' was not written whole\."
    ):
        await run(tools=_scripted(toolchain, tmp_path, limited))
    assert not (tmp_path / "out.gguf").exists() and not (tmp_path / "out.raw").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB: a checkpoint of the tiny model fits, two do not."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_fills_up_while_training_is_named(
    run: Run, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    claims = iter([real("/")._replace(free=10**9)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(claims, None) or real(path))

    def fill(progress: EpochProgress) -> None:
        ballast = small_disk / "ballast"
        if not ballast.exists():
            ballast.write_bytes(os.urandom(8_000_000))

    with pytest.raises(TrainingError, match=r"Out of disk: "):
        await run(out=small_disk / "out.gguf", on_progress=fill)
    assert _names(small_disk) == ["ballast", "out.log"]


@pytest.mark.parametrize(
    ("context_length", "batch", "why"),
    [
        (2048, 0, "Context length 2048 is longer than the model's, which is 1024."),
        (300, 0, "Context length 300 is no multiple of 256. Use 256, 512, 768"),
        (512, 200, "Batch 200 is no divisor of the context length 512."),
        (512, 1024, "Batch 1024 is no divisor of the context length 512."),
    ],
)
def test_windows_that_cannot_be_meant_are_refused(tiny: Path, context_length: int, batch: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        finetune.check_window(context_length, batch, tiny)
