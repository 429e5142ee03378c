"""What can be stored: bytes, a file, or a stream of either kind, made re-readable so that an upload can be retried."""

import hashlib
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from storage.spool import spooled
from timestep.errors import NotFoundError

# Bytes per read: what stays in the processor's cache between reading, hashing and writing.
CHUNK = 256 << 10


class Source:
    """Bytes in memory or in a file, read as often as needed. ``size`` is in bytes.

    ``spooled`` is the SHA-256 of a file that is nobody else's: a driver may move it into place instead of copying.
    """

    def __init__(self, data: bytes | Path, spooled: str | None = None) -> None:
        self.data, self.spooled = data, spooled
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
        if self.spooled is not None:
            return self.spooled
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


Data = bytes | Path | Iterable[bytes] | AsyncIterable[bytes] | Source


@asynccontextmanager
async def as_source(data: Data, folder: Path | None) -> AsyncIterator[Source]:
    """``data`` as a :class:`Source`; what can be read only once is spooled to a file in ``folder`` first.

    Without a folder, in one of the system's for temporary files.
    """
    if isinstance(data, Source):
        yield data
    elif isinstance(data, bytes | Path):
        yield Source(data)
    else:
        with ExitStack() as stack:
            place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timestep-")))
            async with spooled(data, place) as (path, sha256):
                yield Source(path, sha256)
