"""Ids of objects: those that are views of flow runs have a prefix, and the flow run's id without its dashes."""

import re
from uuid import UUID

from timestep.errors import NotFoundError

_HEX = re.compile(r"[0-9a-f]{32}")


def object_id(prefix: str, run_id: UUID) -> str:
    """Such as ``resp_`` and the flow run's 32 hexadecimal digits."""
    return f"{prefix}{run_id.hex}"


def run_id(prefix: str, name: str, kind: str) -> UUID:
    """The flow run that ``name`` is a view of. NotFoundError: no such ``kind`` can have that id."""
    digits = name.removeprefix(prefix)
    if not name.startswith(prefix) or not _HEX.fullmatch(digits):
        raise NotFoundError(kind, name)
    return UUID(digits)


def known_id(kind: str, name: str) -> str:
    """``name``, which is to be a UUID, as we write them. NotFoundError: no ``kind`` can have it."""
    try:
        return str(UUID(name))
    except ValueError:
        raise NotFoundError(kind, name) from None
