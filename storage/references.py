"""References: what flow parameters, results and records carry instead of bytes. Also which keys are keys."""

import re
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from timestep.errors import UsageError

CONTENT_TYPE = "application/octet-stream"

# No part of a key may be empty, '.' or '..' or hold a control character or backslash: on a file system
# such a key would name another object, or leave the store.
_PART = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]+")


class Reference(BaseModel):
    """An object that was stored: enough to fetch it anywhere and to know that it is the same bytes."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(description="Name of the object in the store.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the object's bytes, in hexadecimal.")
    size: int = Field(ge=0, description="Size of the object, in bytes.")
    content_type: str = Field(CONTENT_TYPE, description="Media type of the object.")


class ObjectStat(BaseModel):
    """What a store tells about an object without reading it."""

    model_config = ConfigDict(frozen=True)

    key: str
    size: int = Field(description="Bytes.")
    modified: datetime | None = Field(None, description="Last write (UTC), where the driver tells.")


def check_key(key: str) -> str:
    """``key``, if it can name an object on every driver.

    Raises:
        UsageError: it is empty, longer than 1,024 bytes, absolute, or has an empty, '.' or '..' part.
    """
    if len(key.encode()) <= 1024 and all(_PART.fullmatch(part) for part in key.split("/")):
        return key
    raise UsageError(f"'{key[:200]}' can't be an object's key. Use a relative path such as 'files/report.txt'.")
