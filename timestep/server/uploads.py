"""/v1/uploads: files that come in parts. A part that was acknowledged is there, whichever server is killed."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request
from openai.types import Upload as OpenAIUpload
from openai.types.uploads import UploadPart
from pydantic import BaseModel, ConfigDict, Field

from timestep.errors import NotFoundError
from timestep.server.documented import errors, form_body
from timestep.server.file_views import ExpiresAfter, File, Purpose, lifetime, view
from timestep.server.forms import read_form
from timestep.server.refusals import known_query

if TYPE_CHECKING:
    from timestep.database.models import UploadRow
    from timestep.server.records import Shelves

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], dependencies=[Depends(known_query)])

_PART = {
    "type": "object",
    "required": ["data"],
    "additionalProperties": False,
    "properties": {"data": {"type": "string", "format": "binary"}},
}
_LARGEST = 2**63 - 1


class Upload(OpenAIUpload):
    """A file that comes in parts."""

    file: File | None = None


class UploadRequest(BaseModel):
    """The file that is to come."""

    model_config = ConfigDict(extra="forbid")

    bytes: int = Field(strict=True, ge=0, le=_LARGEST, description="Of the whole file.")
    filename: str
    mime_type: str
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteRequest(BaseModel):
    """The parts that make the file."""

    model_config = ConfigDict(extra="forbid")

    part_ids: list[str] = Field(description="In the order of the file.")
    md5: str | None = Field(None, description="Of the whole file, in hexadecimal.")


@router.post("", response_model=Upload, response_model_exclude_none=True)
async def create_upload(asked: UploadRequest, request: Request) -> Any:
    """Begin an upload. It expires an hour after its last part."""
    from timestep.files.uploads import Uploads

    shelves = await _shelves(request)
    lives = lifetime(asked.purpose, asked.expires_after)
    uploads = Uploads(shelves.database, shelves.store)
    row = await uploads.create(asked.filename, asked.purpose, asked.bytes, asked.mime_type, lives)
    return await _view(shelves, row)


@router.post("/{upload_id}/parts", response_model=UploadPart, responses=errors(404), openapi_extra=form_body(_PART))
async def add_part(upload_id: str, request: Request) -> Any:
    """Add a part, of any size up to the upload's; parts may come in any order, and at the same time."""
    from timestep.files.uploads import Uploads

    shelves = await _shelves(request)
    uploads = Uploads(shelves.database, shelves.store)
    async with read_form(request, shelves.store, "data", await uploads.room(upload_id)) as form:
        form.refuse_fields()
        row = await uploads.add_part(upload_id, form.file)
    created = int(row.created_at.timestamp())
    return {"id": row.id, "object": "upload.part", "created_at": created, "upload_id": upload_id}


@router.post("/{upload_id}/complete", response_model=Upload, response_model_exclude_none=True, responses=errors(404))
async def complete_upload(upload_id: str, asked: CompleteRequest, request: Request) -> Any:
    """Make the file of its parts. Asked again with the same parts, the answer is the same."""
    from timestep.files.uploads import Uploads

    shelves = await _shelves(request)
    row = await Uploads(shelves.database, shelves.store).complete(upload_id, asked.part_ids, asked.md5)
    return await _view(shelves, row)


@router.post("/{upload_id}/cancel", response_model=Upload, response_model_exclude_none=True, responses=errors(404))
async def cancel_upload(upload_id: str, request: Request) -> Any:
    """End the upload: its parts go, and no more are taken."""
    from timestep.files.uploads import Uploads

    shelves = await _shelves(request)
    return await _view(shelves, await Uploads(shelves.database, shelves.store).cancel(upload_id))


async def _view(shelves: Shelves, row: UploadRow) -> dict[str, Any]:
    from timestep.files import Files

    shown = {name: getattr(row, name) for name in ("id", "filename", "purpose", "bytes", "status")}
    times = {name: int(getattr(row, name).timestamp()) for name in ("created_at", "expires_at")}
    file = None
    if row.file_id is not None:
        with suppress(NotFoundError):  # deleted since
            file = view(await Files(shelves.database, shelves.store).get(row.file_id))
    return {**shown, **times, "object": "upload", "file": file}


async def _shelves(request: Request) -> Shelves:
    shelves: Shelves = await request.app.state.housekeeper.shelves()
    return shelves
