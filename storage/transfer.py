"""Moving bytes between a source and a driver, blocking: to be called in a thread."""

import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.digest import Digest
from storage.failures import ShortReadError
from storage.references import Reference
from storage.source import CHUNK, Source
from storage.times import parse_time
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
    if isinstance(source.data, Path) and source.spooled and hasattr(driver, "adopt"):
        driver.adopt(source.data, container, key)
        return source.spooled, source.size
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


def receive_range(driver: Any, obj: Any, start: int, end: int, chunk: int = CHUNK) -> Iterator[bytes]:
    """The object's bytes from ``start`` up to, not including, ``end``; an error when fewer or more come."""
    came = 0
    for piece in driver.download_object_range_as_stream(obj, start, end, chunk):
        came += len(piece)
        yield piece
    if came != end - start:
        raise ShortReadError(f"{came} of {end - start} bytes came")


def verify(url: str, reference: Reference | None, digest: Digest) -> None:
    """Raises IntegrityError unless what passed through ``digest`` is what ``reference`` names."""
    if reference and digest.hexdigest != reference.sha256:
        raise IntegrityError(url, reference.key, reference.sha256, digest.hexdigest)


def abort_multipart(driver: Any, container: Any, prefix: str, before: datetime) -> None:
    """Has parts forgotten that were sent for objects below ``prefix`` and never put together, where a driver has them.

    Only what was begun ``before``: another process may be sending.
    """
    if not getattr(driver, "supports_s3_multipart_upload", False):
        return
    for upload in driver.ex_iterate_multipart_uploads(container, prefix):
        started = parse_time(upload.created_at)
        if started is not None and started < before:
            driver._abort_multipart(container, upload.key, upload.id)
