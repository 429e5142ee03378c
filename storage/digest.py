"""SHA-256 of a stream, computed beside its transfer: hashing one chunk while the next is read or written."""

import hashlib
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor


class Digest:
    """SHA-256 and size (bytes) of what has passed through :meth:`tee`."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def hexdigest(self) -> str:
        """The digest in hexadecimal; complete once the stream is exhausted."""
        return self._sha256.hexdigest()

    def tee(self, chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
        """``chunks``, unchanged. hashlib releases the GIL, so a second core hashes while the first copies."""
        stream = iter(chunks)
        first = next(stream, b"")
        if first:
            yield self._add(first)
        second = next(stream, b"")
        if not second:
            return
        # Only a stream of several chunks is worth a thread; at most one chunk waits to be hashed.
        with ThreadPoolExecutor(1, "sha256") as worker:
            pending: Future[bytes] = worker.submit(self._add, second)
            yield second
            for chunk in stream:
                pending.result()
                pending = worker.submit(self._add, chunk)
                yield chunk
            pending.result()

    def _add(self, chunk: bytes) -> bytes:
        self._sha256.update(chunk)
        self.size += len(chunk)
        return chunk
