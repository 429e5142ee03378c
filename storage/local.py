"""libcloud's local driver, made safe to kill: an object appears whole, under its name, or not at all.

libcloud writes in place, so a killed writer leaves half an object that reads like a whole one. Here
bytes go to a temporary name, to the disk, and only then to the object's name.
"""

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from libcloud.storage.base import Container, Object
from libcloud.storage.drivers.local import LocalStorageDriver
from libcloud.storage.types import ObjectDoesNotExistError

from storage.references import check_key
from storage.source import CHUNK
from storage.spool import TEMPORARY
from timestep.errors import UsageError

# A writer that has not touched its file for this long was killed.
ABANDONED_AFTER = 24 * 3600.0


class AtomicLocalDriver(LocalStorageDriver):
    """Objects as files: ``key`` is the folder of containers, a container is a folder in it.

    Keys can't leave their container: no '..', no absolute path, and no symbolic link on the way.
    Locks are not needed, since a rename is atomic and the last writer wins.
    """

    # A stream needs no parts here, however small (see storage.transfer).
    streams_at_once = True

    def __init__(self, key: str, secret: str | None = None, **options: Any) -> None:
        super().__init__(key, secret, ex_use_locking=False, **options)  # type: ignore[no-untyped-call]

    def get_container(self, container_name: str) -> Container:
        """The container; what killed writers left in it a day ago or earlier is removed."""
        container: Container = super().get_container(container_name)  # type: ignore[no-untyped-call]
        abandoned = time.time() - ABANDONED_AFTER
        for path in (self._folder(container) / TEMPORARY).glob("*"):
            with suppress(OSError):
                if path.stat().st_mtime < abandoned:
                    path.unlink()
        return container

    def iterate_container_objects(
        self, container: Container, prefix: str | None = None, ex_prefix: str | None = None
    ) -> Iterator[Object]:
        """Objects whose key starts with ``prefix``, in the order of their keys."""
        prefix = prefix or ex_prefix or ""
        for key in _keys(self._folder(container), "", prefix):
            with suppress(ObjectDoesNotExistError, UsageError):  # deleted meanwhile; a file that is none of ours
                yield self._make_object(container, key)

    def download_object_as_stream(self, obj: Object, chunk_size: int | None = None) -> Iterator[bytes]:
        """The object's bytes, ``chunk_size`` at a time."""
        try:
            file = self._path(obj.container, obj.name).open("rb", buffering=0)
        except FileNotFoundError:
            raise self._missing(obj.name) from None
        with file:
            while chunk := file.read(chunk_size or CHUNK):
                yield chunk

    def download_object_range_as_stream(
        self, obj: Object, start_bytes: int, end_bytes: int | None = None, chunk_size: int | None = None
    ) -> Iterator[bytes]:
        """The bytes from ``start_bytes`` up to, not including, ``end_bytes``; libcloud's reads the whole file twice."""
        left = (obj.size if end_bytes is None else end_bytes) - start_bytes
        try:
            file = self._path(obj.container, obj.name).open("rb", buffering=0)
        except FileNotFoundError:
            raise self._missing(obj.name) from None
        with file:
            file.seek(start_bytes)
            while left > 0 and (chunk := file.read(min(left, chunk_size or CHUNK))):
                left -= len(chunk)
                yield chunk

    def upload_object(
        self, file_path: str, container: Container, object_name: str, *args: Any, **kwargs: Any
    ) -> Object:
        """Stores a file's bytes."""
        with Path(file_path).open("rb", buffering=0) as file:
            return self.upload_object_via_stream(iter(lambda: file.read(CHUNK), b""), container, object_name)

    def upload_object_via_stream(
        self, iterator: Iterable[bytes], container: Container, object_name: str, *args: Any, **kwargs: Any
    ) -> Object:
        """Stores the bytes; an error raised by ``iterator`` leaves what was there before."""
        target = self._path(container, object_name)
        temporary = self._folder(container) / TEMPORARY / uuid.uuid4().hex
        temporary.parent.mkdir(exist_ok=True)
        try:
            with temporary.open("xb", buffering=0) as file:
                for chunk in iterator:
                    _write_all(file.fileno(), chunk)
                os.fsync(file.fileno())
                info = os.fstat(file.fileno())
            _publish(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return self._described(container, object_name, info)

    def adopt(self, path: Path, container: Container, object_name: str) -> Object:
        """Stores a complete file of the folder of unfinished writes by moving it into place: no byte is copied."""
        target = self._path(container, object_name)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            info = os.fstat(file.fileno())
        _publish(path, target)
        return self._described(container, object_name, info)

    def delete_object(self, obj: Object) -> bool:
        """Removes the object, and the folders that it leaves empty."""
        folder, path = self._folder(obj.container), self._path(obj.container, obj.name)
        try:
            path.unlink()
        except FileNotFoundError:
            raise self._missing(obj.name) from None
        with suppress(OSError):  # a folder that another object lives in
            for parent in path.parents:
                if parent == folder:
                    break
                parent.rmdir()
        return True

    def _missing(self, key: str) -> ObjectDoesNotExistError:
        return ObjectDoesNotExistError(value=None, driver=self, object_name=key)  # type: ignore[no-untyped-call]

    def _folder(self, container: Container) -> Path:
        return Path(self.base_path, container.name)

    def _path(self, container: Container, key: str) -> Path:
        """Where the object lies, or would lie."""
        folder, path = self._folder(container), Path(self.base_path, container.name, check_key(key))
        if key.split("/")[0] == TEMPORARY:
            raise UsageError(f"'{key}' can't be an object's key: '{TEMPORARY}' holds unfinished writes.")
        if path.parent.resolve() != folder.resolve() / Path(key).parent or path.is_symlink():
            raise UsageError(f"'{key}' can't be an object's key: a symbolic link stands in its path.")
        return path

    def _make_object(self, container: Container, object_name: str) -> Object:
        try:
            info = self._path(container, object_name).stat()
        except (FileNotFoundError, NotADirectoryError):
            info = None
        if info is None or not stat.S_ISREG(info.st_mode):
            raise self._missing(object_name)
        return self._described(container, object_name, info)

    def _described(self, container: Container, key: str, info: os.stat_result) -> Object:
        extra = {"modify_time": info.st_mtime}
        return Object(key, info.st_size, f"{info.st_mtime_ns:x}", extra, {}, container, self)


def _keys(folder: Path, above: str, prefix: str) -> Iterator[str]:
    """Keys below ``folder`` that start with ``prefix``, sorted as object stores sort; links are not followed."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name, entry)
                     for entry in entries if not entry.is_symlink()]  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, entry in sorted(found, key=lambda pair: pair[0]):
        key = above + name
        if key == f"{TEMPORARY}/":
            continue
        if not name.endswith("/"):
            if key.startswith(prefix):
                yield key
        elif key.startswith(prefix) or prefix.startswith(key):
            yield from _keys(Path(entry.path), key, prefix)


def _publish(temporary: Path, target: Path) -> None:
    """Renames ``temporary`` to ``target``, and puts the new name and new folders on the disk."""
    while True:
        missing = [parent for parent in target.parents if not parent.exists()]
        # A concurrent delete removes a folder while it's empty: make it again.
        with suppress(FileNotFoundError):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
            break
        if not temporary.exists():
            raise FileNotFoundError(errno.ENOENT, "the unfinished write was removed", str(temporary))
    with suppress(FileNotFoundError):  # the object, and with it its folder, was deleted at once
        for changed in {target.parent, *(parent.parent for parent in missing)}:
            _fsync_folder(changed)


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows can't open a folder; NTFS journals the rename
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
