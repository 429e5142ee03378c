"""SHA-256 of a stream, computed while it passes, chunk by chunk.

In the thread that copies: with chunks that fit the processor's cache that costs no more than copying and
then hashing, where a second thread for the hash was slower on a busy machine and no faster on an idle one.
"""

import hashlib
from collections.abc import Iterable, Iterator


class Digest:
    """SHA-256 and size (bytes) of what has passed through :meth:`tee`."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def hexdigest(self) -> str:
        """The digest in hexadecimal; complete once the stream is exhausted."""
        return self._sha256.hexdigest()

    def tee(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """``chunks``, unchanged."""
        for chunk in chunks:
            self._sha256.update(chunk)
            self.size += len(chunk)
            yield chunk
