"""What can be stored: bytes, a file, or a stream of either kind, made re-readable so that an upload can be retried."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from timestep.errors import NotFoundError

Data = bytes | Path | Iterable[bytes] | AsyncIterable[bytes]

# Bytes per read: what stays in the processor's cache between reading, hashing and writing.
CHUNK = 256 << 10


class Source:
    """Bytes in memory or in a file, read as often as needed. ``size`` is in bytes."""

    def __init__(self, data: bytes | Path) -> None:
        self.data = data
        if isinstance(data, bytes):
            self.size = len(data)
        elif data.is_file():
            self.size = data.stat().st_size
        else:
            raise NotFoundError("file", str(data))

    def chunks(self) -> Iterator[bytes]:
        """The bytes from the start, chunk by chunk."""
        if isinstance(self.data, bytes):
            view = memoryview(self.data)
            for start in range(0, len(view), CHUNK):
                yield bytes(view[start : start + CHUNK]) if len(view) > CHUNK else self.data
            return
        with self.data.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def sha256(self) -> str:
        """SHA-256 of the bytes, in hexadecimal."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


@asynccontextmanager
async def as_source(data: Data) -> AsyncIterator[Source]:
    """``data`` as a :class:`Source`; what can be read only once is spooled to a temporary file first."""
    if isinstance(data, bytes | Path):
        yield Source(data)
        return
    with tempfile.TemporaryDirectory(prefix="timestep-") as folder:
        path = Path(folder) / "object"
        with path.open("wb") as file:
            if isinstance(data, AsyncIterable):
                async for chunk in data:
                    await asyncio.to_thread(file.write, chunk)
            else:
                await asyncio.to_thread(file.writelines, data)
        yield Source(path)
