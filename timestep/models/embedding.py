"""Models that turn texts into vectors: WordLlama's, whose weights come inside its package, or a GGUF file's.

Each is loaded when it is first asked for, and asked on a thread of its own: no text waits behind a generation.
"""

import asyncio
import base64
import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from timestep.errors import ModelFileError, NotFoundError, RateLimitError, TimestepError, UsageError
from timestep.models.files import WORDLLAMA, embedder_name, local_file
from timestep.models.gguf import GGUFHeader
from timestep.models.routing import PREFIX
from timestep.settings import Settings

MOST_TOKENS = 300_000  # of one request, as in OpenAI's API

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]


class Embedder(Protocol):
    """A model ready to embed. ``size``: the vectors' dimensions."""

    size: int

    def tokenize(self, text: str) -> list[int]:
        """The text's tokens."""
        ...

    def embed(self, tokens: Sequence[int]) -> Vector:
        """The vector of a text by its tokens, at least one. UsageError: tokens that the model can't take."""
        ...


class WordLlama:
    """WordLlama's 256 dimensions: the mean of token vectors that were distilled from a large model."""

    size = 256

    def __init__(self) -> None:
        import wordllama  # type: ignore[import-untyped]

        # Its own search for its tokenizer misses the folder that it comes in, and would go to the network.
        folder = Path(wordllama.__file__).parent
        model = wordllama.WordLlama.load(cache_dir=folder, dim=self.size, disable_download=True)
        self._vectors, self._tokenizer = model.embedding, model.tokenizer
        self._tokenizer.no_padding()

    def tokenize(self, text: str) -> list[int]:
        """The text's tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def embed(self, tokens: Sequence[int]) -> Vector:
        """The vector of a text by its tokens. UsageError: a token that the model doesn't have."""
        _check_tokens(tokens, len(self._vectors))
        mean: Vector = self._vectors[np.asarray(tokens)].mean(axis=0)
        return mean


class GGUFEmbedder:
    """A GGUF file's vectors, pooled as the file says (by their mean, where it doesn't)."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        metadata = GGUFHeader.read(path).metadata
        kind = metadata.get("general.architecture")
        pooled = metadata.get(f"{kind}.pooling_type", llama_cpp.LLAMA_POOLING_TYPE_NONE)
        self._context = min(int(metadata.get(f"{kind}.context_length", 512)), 8192)
        options: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
        # A text is taken in at once: a model that reads both ways can't begin before its end.
        options |= {"n_ctx": self._context, "n_batch": self._context, "n_ubatch": self._context}
        try:
            self._llama = llama_cpp.Llama(
                str(path), embedding=True, pooling_type=pooled or llama_cpp.LLAMA_POOLING_TYPE_MEAN, **options
            )
        except (ValueError, RuntimeError) as error:
            raise ModelFileError(path, f"llama.cpp can't load it: {error}") from None
        self._memory = llama_cpp.llama_get_memory(self._llama.ctx)
        self.size = self._llama.n_embd()

    def tokenize(self, text: str) -> list[int]:
        """The text's tokens, with those that the model wants around it."""
        return list(self._llama.tokenize(text.encode()))

    def embed(self, tokens: Sequence[int]) -> Vector:
        """The vector of a text by its tokens. UsageError: a token that the model doesn't have, or too many of them."""
        import llama_cpp

        _check_tokens(tokens, self._llama.n_vocab())
        if len(tokens) > self._context:
            raise UsageError(f"'input' has a text of {len(tokens)} tokens, and this model takes {self._context}.")
        taken = (llama_cpp.llama_token * len(tokens))(*tokens)  # both arrays live as long as the batch
        wanted = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
        batch = llama_cpp.llama_batch_get_one(taken, len(tokens))
        batch.logits = wanted
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, True)
        if code := llama_cpp.llama_decode(self._llama.ctx, batch):
            raise TimestepError(f"llama.cpp could not embed (code {code}).")
        found = llama_cpp.llama_get_embeddings_seq(self._llama.ctx, 0)
        return np.ctypeslib.as_array(found, shape=(self.size,)).copy()


class Embedders:
    """The embedding models of a service by name, and the thread that they are asked on."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sources = {WORDLLAMA: WORDLLAMA, embedder_name(settings): settings.embedding_model}
        self._loaded: dict[str, Embedder] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._asked = 0

    def meant(self, model: str | None) -> str:
        """The name in full: the configured model's, where there is none. NotFoundError: no such embedding model."""
        name = embedder_name(self._settings) if model is None else model.removeprefix(PREFIX)
        if name not in self._sources:
            raise NotFoundError("model", name, self._sources)
        return name

    async def embed(self, model: str, texts: Sequence[str | list[int]], dimensions: int | None) -> "Embedded":
        """The texts' vectors, each of length 1, and their tokens; ``dimensions``: the first ones alone.

        Raises:
            UsageError: more dimensions, or tokens, than the model has.
            RateLimitError: too many requests wait.
        """
        if self._asked > self._settings.queue_limit:
            raise RateLimitError(f"The model server has {self._asked} requests for embeddings. Come back later.")
        self._asked += 1
        try:
            path = None if self._sources[model] == WORDLLAMA else await local_file(self._sources[model], self._settings)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._embed, model, path, texts, dimensions)
        finally:
            self._asked -= 1

    def close(self) -> None:
        """Take no more work."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _embed(
        self, model: str, path: Path | None, texts: Sequence[str | list[int]], dimensions: int | None
    ) -> "Embedded":
        if model not in self._loaded:
            self._loaded[model] = GGUFEmbedder(path, self._settings.cores) if path else WordLlama()
        embedder = self._loaded[model]
        if dimensions is not None and dimensions > embedder.size:
            raise UsageError(f"'dimensions' is {dimensions}, and model '{model}' has {embedder.size}.")
        tokens = [embedder.tokenize(text) if isinstance(text, str) else text for text in texts]
        if not all(tokens):
            raise UsageError(
                "'input' has a text without a token: it is nothing but white space, or what can't be seen."
            )
        count = sum(map(len, tokens))
        if count > MOST_TOKENS:
            raise UsageError(f"'input' has {count} tokens, and a request may have {MOST_TOKENS}.")
        return Embedded([_normal(embedder.embed(text)[:dimensions]) for text in tokens], count)


@dataclass(frozen=True)
class Embedded:
    """Vectors, and how many tokens they are of."""

    vectors: Sequence[Vector]
    tokens: int

    def wire(self, model: str, encoding: str) -> dict[str, Any]:
        """The response in OpenAI's shape; ``encoding`` 'base64': the vectors' little-endian floats of 32 bits."""
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if encoding == "base64" else vector.tolist(),
            }
            for index, vector in enumerate(self.vectors)
        ]
        usage = {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
        return {"object": "list", "data": data, "model": model, "usage": usage}


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _normal(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    scaled: Vector = vector / np.float32(length) if length else vector
    return scaled


def _check_tokens(tokens: Sequence[int], size: int) -> None:
    if unknown := [token for token in tokens if not 0 <= token < size]:
        raise UsageError(f"'input' has the token {unknown[0]}, and this model has {size}. Send texts instead.")
