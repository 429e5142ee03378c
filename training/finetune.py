"""Runs llama.cpp's tools on model files: to F32 and back, and one epoch of fine-tuning.

Each function writes its file under a temporary name, checks it, then renames it: a file that exists is
whole. The optimiser's state lives in the llama-finetune process alone, so it starts anew each epoch.
"""

import asyncio
import errno
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
from pydantic import BaseModel

from timestep.errors import ModelFileError, TrainingError, UsageError
from timestep.models.files import check_gguf
from timestep.models.gguf import GGUFHeader
from training.patches import mask_path
from training.process import Finished, run_tool
from training.toolchain import Toolchain
from training.weights import graft

WINDOW_MULTIPLE = 256  # llama.cpp rounds a context up to multiples of this
RECENT = 8  # windows that the reported loss is averaged over
_PROGRESS = re.compile(r"data=0*(\d+)/0*(\d+) loss=(\S+?)±\S+ acc=(\S+?)±\S+ .*ETA=(\d+):(\d+):(\d+)")


class EpochProgress(BaseModel):
    """Where an epoch stands: ``loss`` (nats per token) over the last windows, ``accuracy`` from 0 to 1 so far."""

    epoch: int
    windows_done: int
    windows: int
    loss: float
    accuracy: float
    eta_seconds: float


class EpochResult(BaseModel):
    """What an epoch achieved: mean ``loss`` in nats per token; ``curve``: (epochs passed, loss of the last windows)."""

    epoch: int
    loss: float
    accuracy: float
    tokens: int
    seconds: float
    curve: list[tuple[float, float]]


def file_type(model: Path) -> str:
    """Type of a model file's weights as llama-quantize names it, such as ``Q4_1``."""
    number = GGUFHeader.read(model).metadata.get("general.file_type", 0)
    return gguf.LlamaFileType(number).name.removeprefix("ALL_").removeprefix("MOSTLY_")


def longest_context(model: Path) -> int:
    """Tokens of the longest context that a model file was made for."""
    metadata = GGUFHeader.read(model).metadata
    return int(metadata.get(f"{metadata['general.architecture']}.context_length", 0))


def check_window(context_length: int, batch: int, model: Path) -> None:
    """UsageError unless the model can be trained on windows of ``context_length`` tokens in steps of ``batch``."""
    longest = longest_context(model)
    if context_length > longest:
        raise UsageError(f"Context length {context_length} is longer than the model's, which is {longest}.")
    if context_length % WINDOW_MULTIPLE:
        raise UsageError(f"Context length {context_length} is no multiple of {WINDOW_MULTIPLE}. Use 256, 512, 768, ….")
    if batch and (batch > context_length or context_length % batch):
        raise UsageError(
            f"Batch {batch} is no divisor of the context length {context_length}. Use 0 for a whole window."
        )


async def clone_to_f32(toolchain: Toolchain, model: Path, out: Path) -> Path:
    """Write ``model`` as F32, the only type that llama-finetune trains, to ``out``."""
    _check_room(out.parent, model, 1 if file_type(model) == "F32" else 7, "the model as F32")
    return await _quantize(toolchain, model, out, "F32", [])


async def quantize(toolchain: Toolchain, f32: Path, out: Path, type_name: str, embeddings: str | None = None) -> Path:
    """Write ``f32`` to ``out`` as ``type_name`` (``Q4_1``, ``Q8_0``, …), its token embeddings as ``embeddings``.

    UsageError where llama-quantize knows no such type.
    """
    _check_room(out.parent, f32, 1, f"the model as {type_name}")
    return await _quantize(toolchain, f32, out, type_name, ["--token-embedding-type", embeddings] if embeddings else [])


async def _quantize(toolchain: Toolchain, source: Path, out: Path, type_name: str, options: list[str]) -> Path:
    unfinished = out.with_suffix(".unfinished")
    command = [toolchain.quantize, "--allow-requantize", *options, source, unfinished, type_name]
    try:
        finished = await _tool(command, out.with_suffix(".log"))
        if "invalid ftype" in finished.tail or "invalid quantization type" in finished.tail:
            raise UsageError(f"No quantization '{type_name}'. Use a type of llama-quantize, such as Q8_0 or Q4_1.")
        if finished.code != 0:
            raise TrainingError(f"llama-quantize {finished.ending} while writing {type_name}.", finished.tail)
        _check_whole(unfinished, finished)
        unfinished.rename(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return out


async def run_epoch(
    toolchain: Toolchain,
    model_f32: Path,
    text: Path,
    out: Path,
    *,
    epoch: int,
    context_length: int,
    batch: int,
    learning_rate: float,
    optimizer: str,
    threads: int,
    on_progress: Callable[[EpochProgress], None] | None = None,
) -> EpochResult:
    """Fine-tune ``model_f32`` on the packed ``text`` once, into ``out``; what the tool printed stays in ``out``.log.

    The mask beside the text (``mask_path``) says which tokens are learnt; without one all are.

    Raises TrainingError, with the tool's last output, where it crashes or is killed, its loss is no
    number any more, or the disk is full. Cancelling kills the tool; nothing is left under ``out``.
    """
    watch = _Watch(epoch, context_length // (batch or context_length), on_progress)
    watch.learnt = await asyncio.to_thread(_learnt_share, text, context_length)
    raw, unfinished = out.with_suffix(".raw"), out.with_suffix(".unfinished")
    size = str(batch or context_length)
    command: list[Any] = [toolchain.finetune, "--model", model_f32, "--file", text, "-o", raw]
    command += ["-c", context_length, "-b", size, "-ub", size, "-t", threads, "-tb", threads]
    command += ["-epochs", 1, "-val-split", 0, "-lr", f"{learning_rate:g}", "-opt", optimizer]
    start = time.monotonic()
    try:
        _check_room(out.parent, model_f32, 2, f"the checkpoint of epoch {epoch}")
        finished = await _tool(command, out.with_suffix(".log"), watch)
        if finished.code != 0:
            kept = f"Its output is kept in '{out.with_suffix('.log')}'."
            raise TrainingError(f"llama-finetune {finished.ending} in epoch {epoch}. {kept}", finished.tail)
        if watch.last is None:
            raise TrainingError(f"llama-finetune trained on nothing in epoch {epoch}.", finished.tail)
        _check_whole(raw, finished)
        seconds = time.monotonic() - start
        await asyncio.to_thread(graft, model_f32, raw, unfinished)
        unfinished.rename(out)
    finally:
        raw.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
    return EpochResult(
        epoch=epoch,
        loss=watch.mean,
        accuracy=watch.last.accuracy,
        tokens=watch.last.windows * context_length,
        seconds=round(seconds, 3),
        curve=watch.curve,
    )


def _learnt_share(text: Path, context_length: int) -> float:
    """Share of the trained windows' tokens that are learnt; 1 where no mask says otherwise."""
    if not mask_path(text).exists():
        return 1.0
    mask = mask_path(text).read_text()
    return max(mask.count("1"), 1) / max(len(mask) - context_length - 1, 1)


class _Watch:
    """Reads llama-finetune's progress lines; raises TrainingError as soon as the loss is no number."""

    def __init__(self, epoch: int, parts: int, report: Callable[[EpochProgress], None] | None) -> None:
        self.epoch, self.parts, self.report = epoch, parts, report
        self.last: EpochProgress | None = None
        self.mean = math.nan
        self.learnt = 1.0  # llama.cpp counts right predictions among all tokens, learnt or not
        self.curve: list[tuple[float, float]] = []
        self._sums = [0.0]  # of all losses up to each progress line

    def __call__(self, line: str) -> None:
        if not (found := _PROGRESS.search(line)):
            return
        done, total, self.mean = int(found[1]), int(found[2]), _number(found[3])
        if not math.isfinite(self.mean):
            raise TrainingError(
                f"The loss became {found[3]} in epoch {self.epoch}, window {done} of {total}: training stopped. "
                "Lower the learning rate.",
                line,
            )
        self._sums.append(self.mean * done)
        back = min(RECENT, done, len(self._sums) - 1)
        recent = (self._sums[-1] - self._sums[-1 - back]) / back
        hours, minutes, seconds = int(found[5]), int(found[6]), int(found[7])
        self.last = EpochProgress(
            epoch=self.epoch,
            windows_done=done // self.parts,
            windows=total // self.parts,
            loss=recent,
            accuracy=min(_number(found[4]) / 100 / self.learnt, 1.0),
            eta_seconds=hours * 3600 + minutes * 60 + seconds,
        )
        if done % max(1, total // 50) == 0:
            self.curve.append((self.epoch - 1 + done / total, round(recent, 5)))
        if self.report:
            self.report(self.last)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


async def _tool(command: list[Any], log: Path, on_line: Callable[[str], None] | None = None) -> Finished:
    try:
        return await run_tool(command, on_line=on_line, log=log)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise TrainingError(f"Out of disk: '{log.parent}' is full.") from error
        raise TrainingError(f"'{command[0]}' can't be run: {error.strerror}.") from error


def _check_room(folder: Path, model: Path, times: int, what: str) -> None:
    """TrainingError unless ``folder`` has room for ``times`` the size of ``model``."""
    free, needed = shutil.disk_usage(folder).free, times * model.stat().st_size
    if free < needed:
        raise TrainingError(
            f"Out of disk: {what} needs {needed / 1e6:.0f} MB, '{folder}' has {free / 1e6:.0f} MB free."
        )


def _check_whole(path: Path, finished: Finished) -> None:
    """llama.cpp ends well even when its last write failed: a short file means a full disk."""
    try:
        check_gguf(path)
    except ModelFileError as error:
        free = shutil.disk_usage(path.parent).free / 1e6
        raise TrainingError(
            f"Out of disk: '{path.parent}' has {free:.0f} MB free, and '{path.name}' was not written whole.",
            finished.tail,
        ) from error
