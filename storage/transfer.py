"""Moving bytes between a source and a driver, blocking: to be called in a thread."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.digest import Digest
from storage.failures import ShortReadError
from storage.references import Reference
from storage.source import CHUNK, Source
from timestep.errors import IntegrityError

# Up to here an object goes in one request, whose checksum libcloud compares; above, in parts
# where the driver has them (S3: of 5 MiB, so an object may have 48 GiB).
SINGLE_REQUEST = 5 << 20


def send(
    driver: Any, container: Any, key: str, source: Source, content_type: str, expected: str | None = None
) -> tuple[str, int]:
    """Stores ``source`` as ``key``; returns its SHA-256 and size (bytes).

    Raises:
        IntegrityError: the bytes changed since ``expected`` was computed; nothing is stored.
    """
    digest = Digest()
    extra = {"content_type": content_type}

    def checked() -> Iterator[bytes]:
        yield from digest.tee(source.chunks())
        # Before the driver sees the end of the stream: an error here makes it discard the object.
        if expected not in (None, digest.hexdigest):
            raise IntegrityError(str(source.data)[:200], key, str(expected), digest.hexdigest)

    if source.size > SINGLE_REQUEST or getattr(driver, "streams_at_once", False):
        driver.upload_object_via_stream(checked(), container, key, extra=extra)
    else:
        with tempfile.TemporaryDirectory(prefix="timestep-") as folder:
            path = Path(folder) / "object"
            path.write_bytes(b"".join(checked()))
            driver.upload_object(str(path), container, key, extra=extra)
    return digest.hexdigest, digest.size


def receive(driver: Any, obj: Any, digest: Digest, chunk: int = CHUNK) -> Iterator[bytes]:
    """The object's bytes, passed through ``digest``; an error when fewer or more come than it has."""
    yield from digest.tee(driver.download_object_as_stream(obj, chunk_size=chunk))
    if digest.size != obj.size:
        raise ShortReadError(f"{digest.size} of {obj.size} bytes came")


def verify(url: str, reference: Reference | None, digest: Digest) -> None:
    """Raises IntegrityError unless what passed through ``digest`` is what ``reference`` names."""
    if reference and digest.hexdigest != reference.sha256:
        raise IntegrityError(url, reference.key, reference.sha256, digest.hexdigest)
