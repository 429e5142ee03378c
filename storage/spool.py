"""Streams that can be read only once, put on a disk first: checked there, and sent as often as needed.

A file here belongs to the process that holds its lock. The lock goes with the process, however that ends, so what
killed processes leave is told from what others still write.
"""

import asyncio
import hashlib
import sys
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

from storage.failures import named

# Unfinished writes of a store in a folder, on the same file system as its objects so that a rename is atomic.
TEMPORARY = ".timestep-tmp"
PREFIX = "spool-"
# Bytes per hop to a thread.
BLOCK = 1 << 20
# Younger than this, a file may not have its lock yet.
LOCKED_AFTER = 60.0


@asynccontextmanager
async def spooled(stream: Iterable[bytes] | AsyncIterable[bytes], folder: Path) -> AsyncIterator[tuple[Path, str]]:
    """The stream as a file in ``folder``, and its SHA-256; the file is gone at the end, unless it was moved.

    Raises:
        StorageError: the folder can't be written to, or is full.
    """
    path = folder / f"{PREFIX}{uuid.uuid4().hex}"
    digest = hashlib.sha256()

    def write(chunks: Iterable[bytes]) -> None:
        with _named(path):
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()

    with _created(path) as file:
        try:
            _lock(file)
            if isinstance(stream, AsyncIterable):
                async for block in _blocks(stream):
                    await asyncio.to_thread(write, block)
            else:
                await asyncio.to_thread(write, stream)
            yield path, digest.hexdigest()
        finally:
            path.unlink(missing_ok=True)


def sweep(folder: Path, locked_after: float = LOCKED_AFTER) -> int:
    """Removes the files in ``folder`` whose processes are gone; returns how many."""
    removed = 0
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another one was quicker, or it is still written
            if path.stat().st_mtime > time.time() - locked_after:
                continue
            with path.open("rb") as file:
                _lock(file)
                path.unlink()
                removed += 1
    return removed


async def _blocks(stream: AsyncIterable[bytes]) -> AsyncIterator[list[bytes]]:
    """The stream's chunks, about ``BLOCK`` bytes at a time."""
    held: list[bytes] = []
    size = 0
    async for chunk in stream:
        held.append(chunk)
        size += len(chunk)
        if size >= BLOCK:
            yield held
            held, size = [], 0
    if held:
        yield held


def _created(path: Path) -> IO[bytes]:
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb", buffering=BLOCK)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise named(path.parent.as_posix(), path.name, error) from error


def _lock(file: IO[bytes]) -> None:
    """Takes the file's lock. BlockingIOError: another process lives that has it."""
    if sys.platform == "win32":  # there an open file can't be removed by another
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
