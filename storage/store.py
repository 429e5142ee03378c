"""The object store: every byte Timestep keeps goes through here, whatever libcloud driver holds it.

A libcloud driver serves one thread at a time, so each operation borrows a driver of its own. What a
driver raises is retried where that can help, and leaves here as one of our errors.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime, timedelta
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from libcloud.storage.types import ObjectDoesNotExistError

from storage.digest import Digest
from storage.drivers import Location, parse_url
from storage.failures import DRIVER_ERRORS, is_transient, named
from storage.references import CONTENT_TYPE, ObjectStat, Reference, check_key
from storage.source import Data, Source, as_source
from storage.spool import TEMPORARY, sweep
from storage.times import modified
from storage.transfer import abort_multipart, receive, receive_range, send, verify
from timestep.errors import NotFoundError, StorageError

T = TypeVar("T")

# Seconds before each further try of a request that failed for a passing reason.
BACKOFF = (0.2, 0.8, 2.0)
# A sending of parts to remote storage that was begun so long ago was killed.
ABANDONED_AFTER = timedelta(days=1)
# Objects listed per hop to a thread.
PAGE = 200


class Borrowed(NamedTuple):
    """A libcloud driver and the container in it, this thread's for now."""

    driver: Any
    container: Any


class ObjectStore:
    """Objects by key, behind one URL. Safe to share between tasks, threads and event loops.

    Every method raises StorageError when the storage can't be reached or refuses, and UsageError for a
    key that can't be one.
    """

    def __init__(self, location: Location, spool: Path | None = None) -> None:
        self._location = location
        # Where storage is a folder, streams are spooled in it: from there they are moved into place.
        local = location.scheme == "local"
        self._spool = Path(location.arguments["key"], location.container, TEMPORARY) if local else spool
        self._idle: list[Borrowed] = []

    def __reduce__(self) -> tuple[type["ObjectStore"], tuple[Location, Path | None]]:
        """Another process gets the place, and makes connections of its own."""
        return ObjectStore, (self._location, self._spool)

    @classmethod
    def open(cls, url: str, spool: Path | None = None) -> "ObjectStore":
        """The store at ``url`` (see :mod:`storage.drivers`); connects on first use.

        ``spool`` is a folder for streams on their way to remote storage; by default the system's for temporary files.

        Raises:
            UsageError: no such driver, package or option.
        """
        location = parse_url(url)
        location.connect()  # the options are the driver's to judge, now rather than at the first write
        return cls(location, spool)

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""
        return self._location.url

    def spool(self, data: Data) -> AbstractAsyncContextManager[Source]:
        """``data``, ready to be stored: what can be read only once is on a disk by then, and gone at the end."""
        return as_source(data, self._spool)

    async def put(self, key: str, data: Data, content_type: str = CONTENT_TYPE) -> Reference:
        """Stores ``data`` as ``key``, replacing what was there: readers see the old bytes or all the new ones."""
        async with self.spool(data) as source:
            return await self._send(check_key(key), source, content_type)

    async def put_content(
        self, data: Data, *, prefix: str = "objects", suffix: str = "", content_type: str = CONTENT_TYPE
    ) -> Reference:
        """Stores ``data`` under its own hash, ``prefix/ab/<sha256><suffix>``; equal bytes are sent once."""
        async with self.spool(data) as source:
            sha256 = await asyncio.to_thread(source.sha256)
            key = check_key(f"{prefix}/{sha256[:2]}/{sha256}{suffix}")
            try:
                if (await self.stat(key)).size == source.size:
                    return Reference(key=key, sha256=sha256, size=source.size, content_type=content_type)
            except NotFoundError:
                pass
            return await self._send(key, source, content_type, expected=sha256)

    async def get(self, what: str | Reference) -> bytes:
        """The object's bytes, in memory.

        Raises:
            NotFoundError: there is no such object.
            IntegrityError: ``what`` is a Reference and the bytes are not those it names.
        """

        def work(borrowed: Borrowed) -> bytes:
            digest = Digest()
            data = b"".join(receive(borrowed.driver, self._object(borrowed, _key(what)), digest))
            verify(self.url, _reference(what), digest)
            return data

        return await self._run(_key(what), work)

    async def stream(self, what: str | Reference, chunk: int = 1 << 20) -> AsyncIterator[bytes]:
        """The object's bytes, about ``chunk`` at a time. Errors as of :meth:`get`.

        A Reference is verified at the end of the stream, after its bytes were handed out: use
        :meth:`download` where unverified bytes must not be used.
        """
        digest = Digest()
        async for piece in self._flow(_key(what), lambda driver, obj: receive(driver, obj, digest, chunk)):
            yield piece
        verify(self.url, _reference(what), digest)

    async def stream_range(self, key: str, start: int, end: int, chunk: int = 1 << 20) -> AsyncIterator[bytes]:
        """The object's bytes from ``start`` up to, not including, ``end``, about ``chunk`` at a time; not verified."""
        async for piece in self._flow(key, lambda driver, obj: receive_range(driver, obj, start, end, chunk)):
            yield piece

    async def download(self, what: str | Reference, path: Path) -> Path:
        """The object as a file at ``path``, which appears only when complete and verified. Errors as of :meth:`get`.

        It is not forced to the disk: after a power cut, download again.
        """

        def work(borrowed: Borrowed) -> Path:
            digest = Digest()
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                with temporary.open("xb") as file:
                    for chunk in receive(borrowed.driver, self._object(borrowed, _key(what)), digest):
                        file.write(chunk)
                verify(self.url, _reference(what), digest)
                return temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

        return await self._run(_key(what), work)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """Objects whose key starts with ``prefix``, in the order of their keys where the driver sorts."""

        def begin() -> tuple[Borrowed, Iterator[Any], Sequence[Any]]:
            borrowed = self._borrow()
            found = iter(
                borrowed.driver.iterate_container_objects(borrowed.container, prefix=self._location.prefix + prefix)
            )
            return borrowed, found, tuple(islice(found, PAGE))

        borrowed, found, page = await self._retried(prefix, begin)
        try:
            while page:
                for obj in page:
                    yield self._stat(obj)
                page = await asyncio.to_thread(lambda: tuple(islice(found, PAGE)))
        except DRIVER_ERRORS as error:
            raise named(self.url, prefix, error) from error
        self._idle.append(borrowed)

    async def stat(self, key: str) -> ObjectStat:
        """Size and time of an object. NotFoundError where there is none."""
        return await self._run(key, lambda borrowed: self._stat(self._object(borrowed, key)))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            await self.stat(key)
        except NotFoundError:
            return False
        return True

    async def delete(self, key: str) -> None:
        """Removes the object. NotFoundError where there is none."""

        def work(borrowed: Borrowed) -> None:
            if not borrowed.driver.delete_object(self._object(borrowed, key)):
                raise StorageError(self.url, f"object '{key}' could not be deleted.")

        await self._run(key, work)

    async def sweep(self, prefix: str = "", unfinished_for: timedelta = ABANDONED_AFTER) -> None:
        """Removes what killed writers left: spooled streams at once, parts sent as ``prefix…`` after that time."""
        if self._spool is not None:
            await asyncio.to_thread(sweep, self._spool)
        before = datetime.now(UTC) - unfinished_for

        def work(borrowed: Borrowed) -> None:
            abort_multipart(borrowed.driver, borrowed.container, self._location.prefix + prefix, before)

        await self._run(prefix.rstrip("/") or "sweep", work)

    async def presigned_url(self, key: str, expires: timedelta) -> str | None:
        """A URL that fetches the object without credentials until then; None where the driver has none."""

        def work(borrowed: Borrowed) -> str | None:
            sign = borrowed.driver.get_object_cdn_url
            if "ex_expiry" not in signature(sign).parameters:
                return None
            # Drivers take hours and cut down to whole seconds.
            return str(sign(self._object(borrowed, key), ex_expiry=(expires.total_seconds() + 0.5) / 3600))

        return await self._run(key, work)

    async def _send(self, key: str, source: Source, content_type: str, expected: str | None = None) -> Reference:
        def work(borrowed: Borrowed) -> tuple[str, int]:
            return send(
                borrowed.driver, borrowed.container, self._location.prefix + key, source, content_type, expected
            )

        sha256, size = await self._run(key, work)
        return Reference(key=key, sha256=sha256, size=size, content_type=content_type)

    async def _flow(self, key: str, begin: Callable[[Any, Any], Iterator[bytes]]) -> AsyncIterator[bytes]:
        """The chunks that ``begin(driver, object)`` reads, each in a thread; what fails at the first is tried again."""

        def first() -> tuple[Borrowed, Iterator[bytes], bytes]:
            borrowed = self._borrow()
            chunks = begin(borrowed.driver, self._object(borrowed, key))
            return borrowed, chunks, next(chunks, b"")

        borrowed, chunks, piece = await self._retried(key, first)
        try:
            while piece:
                yield piece
                piece = await asyncio.to_thread(next, chunks, b"")
        except DRIVER_ERRORS as error:
            raise named(self.url, key, error) from error
        self._idle.append(borrowed)

    async def _run(self, key: str, work: Callable[[Borrowed], T]) -> T:
        """``work`` on object ``key``, in a thread, with a driver of its own."""

        def attempt() -> T:
            borrowed = self._borrow()
            # A driver that failed is dropped: its connection may be in any state.
            with suppress(ObjectDoesNotExistError):
                result = work(borrowed)
                self._idle.append(borrowed)
                return result
            self._idle.append(borrowed)
            raise NotFoundError("object", key)

        return await self._retried(check_key(key), attempt)

    async def _retried(self, key: str, attempt: Callable[[], T]) -> T:
        """``attempt`` in a thread, again after each delay of ``BACKOFF`` while it fails for a passing reason."""
        delays = iter(BACKOFF)
        while True:
            try:
                return await asyncio.to_thread(attempt)
            except DRIVER_ERRORS as error:
                delay = next(delays, None) if is_transient(error) else None
                if delay is None:
                    raise named(self.url, key, error) from error
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))

    def _borrow(self) -> Borrowed:
        """An idle driver, or a new one whose container is known to exist."""
        with suppress(IndexError):
            return self._idle.pop()
        driver = self._location.connect()
        container = driver.get_container(self._location.container)
        # libcloud asks for the container before each object: once per driver is enough.
        driver.get_container = lambda container_name: container
        return Borrowed(driver, container)

    def _object(self, borrowed: Borrowed, key: str) -> Any:
        return borrowed.driver.get_object(borrowed.container.name, self._location.prefix + key)

    def _stat(self, obj: Any) -> ObjectStat:
        key = obj.name.removeprefix(self._location.prefix)
        return ObjectStat(key=key, size=obj.size, modified=modified(obj.extra))


def _key(what: str | Reference) -> str:
    return what.key if isinstance(what, Reference) else what


def _reference(what: str | Reference) -> Reference | None:
    return what if isinstance(what, Reference) else None
