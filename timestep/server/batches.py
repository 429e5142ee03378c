"""/v1/batches: a batch is a run of the ``batch`` flow, and what is said of it a view of that."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Literal

from fastapi import APIRouter, Depends, Request
from openai.types import Batch
from pydantic import BaseModel, ConfigDict, Field

from timestep.errors import ConflictError, ParameterError
from timestep.server import batch_views, run_lists
from timestep.server.batch_views import KIND, PREFIX, TAG
from timestep.server.documented import errors
from timestep.server.pages import After, Limit, Page, page
from timestep.server.records import Housekeeper, Records
from timestep.server.refusals import known_query

router = APIRouter(prefix="/v1/batches", tags=["batches"], dependencies=[Depends(known_query)])

DEPLOYMENT = "batch/batch"
LONGEST_WINDOW = timedelta(days=30)
_WINDOW = re.compile(r"([1-9]\d{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Endpoint = Literal["/v1/responses", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"]


class OutputExpiresAfter(BaseModel):
    """How long the files with the results are kept."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class CreateBatch(BaseModel):
    """A batch to be made."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(description="A file of purpose 'batch': JSONL, a request on each line.")
    endpoint: Endpoint
    completion_window: str = Field(description="'24h'; or another time, such as '90m', '7d'.")
    metadata: dict[str, str] | None = None
    output_expires_after: OutputExpiresAfter | None = None


@router.post("", summary="Create a batch", responses=errors(404, 409))
async def create(body: CreateBatch, request: Request) -> Batch:
    """Start a batch of the requests in a file; they are checked first."""
    from timestep.files import Files

    housekeeper: Housekeeper = request.app.state.housekeeper
    labels = run_lists.labels(body.metadata)
    deadline = datetime.now(UTC) + _window(body.completion_window)
    shelves = await housekeeper.shelves()
    row = await Files(shelves.database, shelves.store).get(body.input_file_id)
    if row.purpose != "batch":
        raise ParameterError("input_file_id", f"is a file of the purpose '{row.purpose}', not 'batch'.")
    records = await housekeeper.records()
    settings = {
        "endpoint": body.endpoint,
        "completion_window": body.completion_window,
        "deadline": deadline.isoformat(),
        "output_expires_after": body.output_expires_after and body.output_expires_after.seconds,
    }
    parameters = {"inputs": row.id, "settings": settings}
    run = await records.starts.start(records.client, DEPLOYMENT, parameters, tags=[TAG], labels=labels)
    return await batch_views.view(records, run)


@router.get("", summary="List batches", response_model=Page[Batch], responses=errors(404))
async def list_batches(request: Request, limit: Limit = 20, after: After = None) -> object:
    """Batches, the newest first."""
    housekeeper: Housekeeper = request.app.state.housekeeper
    records = await housekeeper.records()
    last = None if after is None else await run_lists.read(records, TAG, PREFIX, after, KIND)
    found = await run_lists.newest(records, TAG, limit, last)
    return page(await batch_views.views(records, found), limit)


@router.get("/{batch_id}", summary="Get a batch", responses=errors(404))
async def get_batch(batch_id: str, request: Request) -> Batch:
    """The batch as it stands."""
    housekeeper: Housekeeper = request.app.state.housekeeper
    records = await housekeeper.records()
    run = await run_lists.read(records, TAG, PREFIX, batch_id, KIND)
    return await batch_views.view(records, run)


@router.post("/{batch_id}/cancel", summary="Cancel a batch", responses=errors(404, 409))
async def cancel(batch_id: str, request: Request) -> Batch:
    """Have the batch stopped within seconds; the answers that it has got are kept, in its files."""
    from timestep import steps

    housekeeper: Housekeeper = request.app.state.housekeeper
    records: Records = await housekeeper.records()
    run = await run_lists.read(records, TAG, PREFIX, batch_id, KIND)
    status = (await batch_views.view(records, run)).status
    if status in ("completed", "expired", "failed"):
        raise ConflictError(f"Batch '{batch_id}' is {status} already.")
    await steps.cancel(records.client, records.database, run.id)
    return await get_batch(batch_id, request)


def _window(text: str) -> timedelta:
    if found := _WINDOW.fullmatch(text):
        window = timedelta(**{_UNITS[found[2]]: int(found[1])})
        if window <= LONGEST_WINDOW:
            return window
    raise ParameterError("completion_window", f"is '{text[:40]}', which is no time of at most 30 days, such as '24h'.")
