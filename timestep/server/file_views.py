"""Files as OpenAI shows them, and what may be said when one is made: its purpose, and when it goes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from openai.types import FileObject
from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from timestep.database.models import FileRow

M = TypeVar("M", bound=BaseModel)

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
AnyPurpose = Literal[Purpose, "assistants_output", "batch_output", "fine-tune-results"]
# Files of the purpose 'batch' whose maker doesn't say when they go.
BATCH_SECONDS = 30 * 24 * 3600


class ExpiresAfter(BaseModel):
    """When a file goes by itself."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(
        strict=True, ge=3600, le=BATCH_SECONDS, description="From its creation on: an hour to 30 days."
    )


class FileFields(BaseModel):
    """What a form says of the file that it carries."""

    model_config = ConfigDict(extra="forbid")

    purpose: Purpose
    expires_after: ExpiresAfter | None = None

    @property
    def expires_at(self) -> datetime | None:
        """When the file goes, if made now."""
        seconds = lifetime(self.purpose, self.expires_after)
        return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


class File(FileObject):
    """A file of a client."""

    purpose: AnyPurpose  # type: ignore[assignment]


def lifetime(purpose: str, expires_after: ExpiresAfter | None) -> int | None:
    """Seconds from a file's creation to its end, if it has one."""
    if expires_after is not None:
        return expires_after.seconds
    return BATCH_SECONDS if purpose == "batch" else None


def attachment(filename: str) -> str:
    """The ``content-disposition`` of bytes that a browser saves under this name."""
    return f"attachment; filename*=UTF-8''{quote(filename, safe='')}"


def view(row: FileRow) -> dict[str, Any]:
    """The file as its clients see it."""
    times = {"created_at": int(row.created_at.timestamp())}
    if row.expires_at is not None:
        times["expires_at"] = int(row.expires_at.timestamp())
    shown = {"id": row.id, "object": "file", "bytes": row.bytes, "filename": row.filename, "purpose": row.purpose}
    return {**shown, **times, "status": "processed"}


def parsed(model: type[M], fields: dict[str, str]) -> M:
    """A form's fields as a model; ``a[b]`` is the field 'b' of 'a'. RequestValidationError names what is wrong."""
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        outer, bracket, inner = name.partition("[")
        if bracket and inner.endswith("]") and isinstance(nested.setdefault(outer, {}), dict):
            nested[outer][inner[:-1]] = value
        else:
            nested[name] = value
    try:
        return model.model_validate_strings(nested)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(found, body=nested) from error
