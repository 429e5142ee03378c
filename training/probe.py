"""Asks a llama-finetune binary whether it trains on the tokens that are served, and on the answers alone.

It trains a toy model of some 100 KB on a text of special tokens alone and counts its windows: exactly
one token each and windows that do not overlap give the expected number. The mask says that nothing is to
be learnt, so the loss must be 0. Anything else is refused.
"""

import asyncio
import re
import tempfile
from pathlib import Path

import gguf
import numpy as np

from timestep.errors import ToolchainError
from training.patches import mask_path
from training.process import run_tool

CONTEXT = 256  # llama.cpp rounds contexts up to multiples of this
WINDOWS = 2
SPECIAL = "<|im_start|>"
TOKENS = (WINDOWS + 1) * CONTEXT + 1
_PROGRESS = re.compile(r"data=\d+/0*(\d+) loss=(\S+?)±")


async def check_parses_special_tokens(finetune: Path) -> None:
    """ToolchainError unless the binary runs, parses special tokens and does not overlap windows."""
    with tempfile.TemporaryDirectory(prefix="timestep-probe-") as folder:
        model, text = Path(folder, "toy.gguf"), Path(folder, "toy.txt")
        await asyncio.to_thread(write_toy_model, model)
        await asyncio.to_thread(text.write_text, SPECIAL * TOKENS)
        await asyncio.to_thread(mask_path(text).write_text, "0" * TOKENS)
        sizes = ["-c", CONTEXT, "-b", CONTEXT, "-ub", CONTEXT, "-t", 1]
        training = ["-epochs", 1, "-val-split", 0, "-o", Path(folder, "out.gguf")]
        command = [finetune, "--model", model, "--file", text, *sizes, *training]
        try:
            finished = await run_tool([str(part) for part in command])
        except OSError as error:
            raise ToolchainError(f"'{finetune}' can't be started: {error.strerror}.") from error
    if finished.code != 0:
        said = "".join(finished.tail.splitlines()[-1:]) or "it printed nothing"
        raise ToolchainError(f"'{finetune}' {finished.ending} on a toy model: {said.rstrip('.')}.")
    seen = {(int(windows), float(loss)) for windows, loss in _PROGRESS.findall(finished.tail)}
    if seen != {(WINDOWS, 0.0)}:
        raise ToolchainError(
            f"'{finetune}' does not train on the tokens that are served (special tokens are plain text to it, its "
            "windows overlap, or it knows no mask)."
        )


def write_toy_model(path: Path) -> None:
    """Write a one-layer F32 llama whose tokens are the printable ASCII characters and one special token."""
    width, heads, feed = 32, 2, 32
    tokens = [*(chr(code) for code in range(33, 127)), SPECIAL]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(len(tokens) - 1)
    shapes = {"token_embd.weight": (len(tokens), width), "output.weight": (len(tokens), width)}
    shapes |= {f"blk.0.attn_{part}.weight": (width, width) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate.weight": (feed, width), "blk.0.ffn_up.weight": (feed, width)}
    shapes |= {"blk.0.ffn_down.weight": (width, feed)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(0, 0.05, shape).astype(np.float32))
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
