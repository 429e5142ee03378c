"""/v1/files: files that clients keep here, of any size. Their bytes pass through, and never are in memory whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types import FileDeleted

from timestep.errors import UsageError
from timestep.models.errors import error_body
from timestep.server.documented import ErrorBody, errors, form_body
from timestep.server.file_views import AnyPurpose, File, FileFields, attachment, parsed, view
from timestep.server.forms import read_form
from timestep.server.pages import After, Order, Page, page
from timestep.server.ranges import asked_range
from timestep.server.refusals import known_query

if TYPE_CHECKING:
    from timestep.files import Files

router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[Depends(known_query)])

# A browser that is sent to a file saves it, and shows nothing of it.
_SAFE = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox; default-src 'none'"}
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": FileFields.model_json_schema()["properties"]["purpose"],
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}
_BYTES: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes.", **_BYTES},
    206: {"description": "The part of the bytes that was asked for.", **_BYTES},
    416: {"model": ErrorBody, "description": "The file has none of the bytes that were asked for."},
    **errors(404),
}


@router.post("", response_model=File, response_model_exclude_none=True, openapi_extra=form_body(_FORM))
async def create_file(request: Request) -> Any:
    """Keep a file. It is there whole once this is answered, and not at all before."""
    from timestep.files import Files
    from timestep.files.lines import check_lines

    shelves = await request.app.state.housekeeper.shelves()
    async with read_form(request, shelves.store, "file") as form:
        said = parsed(FileFields, form.fields)
        await asyncio.to_thread(check_lines, form.file, said.purpose)
        files = Files(shelves.database, shelves.store)
        return view(await files.create(form.file, form.filename, said.purpose, said.expires_at))


@router.get("", response_model=Page[File], response_model_exclude_none=True, responses=errors(404))
async def list_files(
    request: Request,
    purpose: Annotated[AnyPurpose | None, Query(description="Files of this purpose alone.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Files on a page.")] = 10_000,
    order: Order = "desc",
    after: After = None,
) -> Any:
    """Files, a page at a time, the newest first."""
    files = await _files(request)
    found = await files.list(purpose=purpose, after=after, limit=limit + 1, ascending=order == "asc")
    return page([view(row) for row in found], limit)


@router.get("/{file_id}", response_model=File, response_model_exclude_none=True, responses=errors(404))
async def get_file(file_id: str, request: Request) -> Any:
    """What the file is."""
    return view(await (await _files(request)).get(file_id))


@router.delete("/{file_id}", response_model=FileDeleted, responses=errors(404))
async def delete_file(file_id: str, request: Request) -> Any:
    """Remove the file."""
    await (await _files(request)).delete(file_id)
    return FileDeleted(id=file_id, deleted=True, object="file")


@router.get("/{file_id}/content", response_class=Response, responses=_CONTENT)
async def get_content(
    file_id: str,
    request: Request,
    range: Annotated[str | None, Header(description="One range, such as bytes=0-499.")] = None,
    if_range: Annotated[str | None, Header(description="The ETag that the range is meant of.")] = None,
) -> Response:
    """The file's bytes, or one range of them."""
    files = await _files(request)
    row = await files.get(file_id)
    tag = f'"{row.sha256}"'
    part = asked_range(range, row.bytes) if if_range in (None, tag) else None
    start, end = part or (0, row.bytes)
    if part is not None and start == end:
        error = UsageError(f"File '{file_id}' has {row.bytes} bytes: none of those that '{range}' asks for.")
        return JSONResponse(error_body(error), 416, {"content-range": f"bytes */{row.bytes}"})
    pieces = files.read(row, start, end) if part else files.read(row)
    first = await anext(pieces, b"")  # storage that is away is said now
    headers = {"content-length": str(end - start), "etag": tag, "accept-ranges": "bytes", **_SAFE}
    headers["content-disposition"] = attachment(_last_part(row.filename))
    if part is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{row.bytes}"
    media = "application/octet-stream"
    return StreamingResponse(_flow(first, pieces), 206 if part else 200, headers, media)


async def _flow(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _last_part(filename: str) -> str:
    """A name to save under: the folders that a label may speak of are not the client's."""
    return filename.replace("\\", "/").rstrip("/").rpartition("/")[2].strip(".") or "file"


async def _files(request: Request) -> Files:
    from timestep.files import Files

    shelves = await request.app.state.housekeeper.shelves()
    return Files(shelves.database, shelves.store)
