"""The weights of GGUF files, read and replaced in place."""

import shutil
import struct
from pathlib import Path
from typing import Any

import gguf

from timestep.errors import TrainingError


class Weights(gguf.GGUFReader):
    """A GGUFReader that steps over arrays: a tokenizer's 100,000 strings take it seconds, and nobody asks for them."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data = self.data.data
        kind, length = struct.unpack_from("<IQ", data, orig_offs)
        end = orig_offs + 12
        if kind == gguf.GGUFValueType.STRING:
            for _ in range(length):
                end += 8 + struct.unpack_from("<Q", data, end)[0]
        else:
            end += length * self.gguf_scalar_to_np[gguf.GGUFValueType(kind)]().itemsize
        return end - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]


def embedding_type(model: Path) -> str:
    """Type of a model's token embeddings, such as ``Q8_0``; it often differs from that of the other weights."""
    types = {tensor.name: tensor.tensor_type.name for tensor in Weights(model).tensors}
    return str(types["token_embd.weight"])


def graft(base: Path, trained: Path, out: Path) -> None:
    """Write ``base``, an F32 file, to ``out`` with the weights of ``trained``.

    llama-finetune's own output has lost the chat template and says a context as long as the training window.
    """
    shutil.copyfile(base, out)
    target, source = Weights(out, "r+"), Weights(trained)
    weights = {tensor.name: tensor.data for tensor in source.tensors}
    if missing := {tensor.name for tensor in target.tensors} - weights.keys():
        raise TrainingError(f"llama-finetune did not write the weights {', '.join(sorted(missing)[:3])}.")
    for tensor in target.tensors:
        tensor.data[:] = weights[tensor.name]
    target.data.flush()
