"""What a driver's errors mean: worth another try or not, and which of our errors they are."""

import errno
import http.client
import re

import requests
from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import InvalidCredsError, LibcloudError
from libcloud.storage.types import ContainerDoesNotExistError, ObjectDoesNotExistError

from timestep.errors import NotFoundError, StorageError, TimestepError

# What a driver raises when something is wrong with the storage. Anything else is a bug, and keeps its traceback.
DRIVER_ERRORS = (LibcloudError, BaseHTTPError, OSError, http.client.HTTPException)

_TRANSIENT = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
)
# libcloud's drivers raise a bare error that names the HTTP status in its text.
_STATUS = re.compile(r"[Ss]tatus[ _]code\D{0,4}(429|5\d\d)\b")


class ShortReadError(ConnectionError):
    """The server sent fewer or more bytes than the object has."""


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, BaseHTTPError):
        return bool(error.code == 429 or error.code >= 500)
    return isinstance(error, _TRANSIENT) or bool(_STATUS.search(str(error)))


def named(url: str, key: str, error: Exception) -> TimestepError:
    """``error``, which a driver raised for object ``key`` of the store at ``url``, as one of ours."""
    if isinstance(error, ObjectDoesNotExistError):
        return NotFoundError("object", key)
    if isinstance(error, ContainerDoesNotExistError):
        return StorageError(url, "there is no such container. Create it first, or correct the URL.")
    if isinstance(error, InvalidCredsError):
        return StorageError(url, "the credentials are refused.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(url, f"no space left for object '{key}'.")
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return StorageError(url, f"object '{key}': {reason}" if key else reason)
