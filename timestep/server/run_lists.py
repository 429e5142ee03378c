"""Flow runs that are shown as objects of the API: their metadata, and lists of them, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timestep.errors import NotFoundError, ParameterError
from timestep.server import ids
from timestep.server.records import Records

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

METADATA = "metadata."  # before the keys of an object's metadata, among its flow run's labels
MOST_PAIRS, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512


def labels(metadata: dict[str, str] | None) -> dict[str, str]:
    """An object's metadata as labels of its flow run. UsageError: more than fits."""
    given = metadata or {}
    if len(given) > MOST_PAIRS:
        raise ParameterError("metadata", f"has {len(given)} pairs; {MOST_PAIRS} are the most.")
    for key, value in given.items():
        if len(key) > LONGEST_KEY or len(value) > LONGEST_VALUE:
            most = f"keys have at most {LONGEST_KEY} characters, values {LONGEST_VALUE}"
            raise ParameterError("metadata", f"has '{key[:80]}', which is too long: {most}.")
    return {f"{METADATA}{key}": value for key, value in given.items()}


def metadata_of(run: FlowRun) -> dict[str, str]:
    """The metadata that a flow run was made with."""
    return {key.removeprefix(METADATA): str(value) for key, value in run.labels.items() if key.startswith(METADATA)}


async def read(records: Records, tag: str, prefix: str, name: str, kind: str) -> FlowRun:
    """The flow run that ``name`` is a view of. NotFoundError: there is none with this tag."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags

    from timestep.steps.views import answering

    chosen = FlowRunFilter(
        id=FlowRunFilterId(any_=[ids.run_id(prefix, name, kind)]), tags=FlowRunFilterTags(all_=[tag])
    )
    async with answering(records.client):
        found = await records.client.read_flow_runs(flow_run_filter=chosen)
    if not found:
        raise NotFoundError(kind, name)
    return found[0]


async def newest(records: Records, tag: str, limit: int, after: FlowRun | None, labelled: Any = None) -> list[FlowRun]:
    """One more than ``limit`` runs with this tag, from the newest on, or from the one that is older than ``after``."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterExpectedStartTime, FlowRunFilterTags
    from prefect.client.schemas.sorting import FlowRunSort

    from timestep.steps.views import pages

    before = None if after is None else FlowRunFilterExpectedStartTime(before_=after.expected_start_time)
    chosen = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]), expected_start_time=before)
    found: list[FlowRun] = []
    skipping = after is not None
    async for page in pages(records.client, chosen, flows=None, sort=FlowRunSort.EXPECTED_START_TIME_DESC):
        for run in page:
            if not skipping and _labelled(run, labelled):
                found.append(run)
            skipping = skipping and after is not None and run.id != after.id
        if len(found) > limit:
            break
    return found[: limit + 1]


def _labelled(run: FlowRun, metadata: dict[str, str] | None) -> bool:
    return not metadata or metadata.items() <= metadata_of(run).items()
