"""Artifacts: files of a task, in storage. A file's name and path are labels, kept beside it; its key is of its id."""

from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

from fastapi import Request
from fastapi.responses import StreamingResponse

from timestep.errors import NotFoundError, ParameterError
from timestep.server import ids
from timestep.server.agent_protocol import artifact_rows, tasks
from timestep.server.agent_protocol.route import NOT_FOUND, protocol_router
from timestep.server.agent_protocol.shapes import (
    Artifact,
    CurrentPage,
    PageSize,
    Pagination,
    TaskArtifactsListResponse,
)
from timestep.server.documented import form_body
from timestep.server.file_views import attachment
from timestep.server.forms import read_form

router = protocol_router()

LONGEST = 1024  # characters of a name or path
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "The file."},
        "relative_path": {"type": "string", "description": "Where it would lie in the agent's workspace."},
    },
    "additionalProperties": False,
}
_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.get(
    "/{task_id}/artifacts",
    operation_id="listAgentTaskArtifacts",
    summary="List the artifacts of a task.",
    responses=NOT_FOUND,
)
async def listed(
    task_id: str, request: Request, current_page: CurrentPage = 1, page_size: PageSize = 10
) -> TaskArtifactsListResponse:
    """The artifacts, oldest first."""
    async with (await request.app.state.housekeeper.database()).session() as session:
        row = await tasks.find(session, task_id)
        found, total = await artifact_rows.page(session, row.id, page_size, (current_page - 1) * page_size)
    shown = [tasks.artifact(one) for one in found]
    return TaskArtifactsListResponse(artifacts=shown, pagination=Pagination.of(total, current_page, page_size))


@router.post(
    "/{task_id}/artifacts",
    operation_id="uploadAgentTaskArtifacts",
    summary="Upload an artifact for a task.",
    responses=NOT_FOUND,
    openapi_extra=form_body(_FORM),
)
async def upload(task_id: str, request: Request) -> Artifact:
    """The artifact, once it is stored whole."""
    from timestep.database.models import ArtifactRow

    shelves = await request.app.state.housekeeper.shelves()
    async with shelves.database.session() as session:
        task = await tasks.find(session, task_id)
    async with read_form(request, shelves.store, "file") as form:
        path = _path(form.fields.pop("relative_path", None))
        form.refuse_fields()
        row = ArtifactRow(id=str(uuid4()), task_id=task.id, file_name=_name(form.filename), relative_path=path)
        row.key, row.agent_created = f"artifacts/{task.id}/{row.id}", False
        await artifact_rows.keep(shelves, row, form.file)
    return tasks.artifact(row)


@router.get(
    "/{task_id}/artifacts/{artifact_id}",
    operation_id="downloadAgentTaskArtifact",
    summary="Download an artifact.",
    response_class=StreamingResponse,
    responses={200: {"description": "The artifact's bytes.", **_BINARY}, **NOT_FOUND},
)
async def download(task_id: str, artifact_id: str, request: Request) -> StreamingResponse:
    """The artifact's bytes."""
    from timestep.database.models import ArtifactRow

    shelves = await request.app.state.housekeeper.shelves()
    async with shelves.database.session() as session:
        task = await tasks.find(session, task_id)
        row = await session.get(ArtifactRow, ids.known_id("artifact", artifact_id))
    if row is None or row.task_id != task.id or not row.stored:
        raise NotFoundError("artifact", artifact_id)
    headers = {
        "content-length": str((await shelves.store.stat(row.key)).size),
        "content-disposition": attachment(row.file_name),
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(shelves.store.stream(row.key), headers=headers, media_type="application/octet-stream")


def _name(given: str) -> str:
    """The last part of a file's name: what comes before is of the client's disk (RFC 7578, section 4.2)."""
    name = given.replace("\\", "/").rpartition("/")[2]
    if not name.isprintable() or name in ("", ".", "..") or len(name) > LONGEST:
        raise ParameterError("file", "has a name that is empty, too long, or can't be printed.")
    return name


def _path(given: str | None) -> str | None:
    """A path within the task, or none. UsageError: it leads out of it."""
    if not given:
        return None
    path = PurePosixPath(given.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in given or not given.isprintable() or len(given) > LONGEST:
        raise ParameterError("relative_path", "has to stay within the task: no '..', no absolute path.")
    return given
