"""What every flow needs: the services of its home, and the artifacts that people look at."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.client.schemas.objects import FlowRun, State
from pydantic import Field

from storage.references import Reference
from storage.store import ObjectStore
from timestep.agents.durable.threads import leave_hung_calls_behind
from timestep.agents.plain import whole
from timestep.agents.record.away import prefect_reached
from timestep.agents.record.lease import Lease
from timestep.agents.registry import AgentRegistry, load_registry
from timestep.agents.types import StepOutput
from timestep.database.engine import Database
from timestep.errors import ServiceUnavailableError, TimestepError, UsageError
from timestep.settings import Settings

RELEASE_SECONDS = 5.0


def shown(title: str, description: str, **bounds: Any) -> Any:
    """How the Prefect UI's form shows a flow parameter; goes into its ``Annotated`` type.

    Prefect makes a field of its own around each parameter, titled by the parameter's name. What stands
    in ``json_schema_extra`` is merged into the schema last, and wins.
    """
    return Field(json_schema_extra={"title": title, "description": description}, **bounds)


async def hold(settings: Settings, run_id: str) -> Lease | None:
    """Take the flow run's lease: first of all, since what a flow imports may take longer than a start is given.

    From then on a call that hangs in a thread holds up nothing else. None where the settings name no database.

    Raises:
        ServiceUnavailableError: the database stayed away for two minutes.
    """
    leave_hung_calls_behind()
    if settings.database_url is None:
        return None
    return await Lease.acquire(Database(settings.database_url), run_id, end_hung=True)


async def let_go(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Once the run's end is told, nobody need wait for the process's: it may hang in a tool's thread for ever."""
    lease = Lease.held(str(flow_run.id))
    if lease is not None:
        with suppress(TimeoutError, ServiceUnavailableError):
            await asyncio.wait_for(lease.release(), RELEASE_SECONDS)


@dataclass(frozen=True)
class Services:
    """Settings, storage, agents and database of the home that this flow run belongs to."""

    settings: Settings
    store: ObjectStore
    registry: AgentRegistry
    database: Database

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Opened anew for each flow run: agents files may have changed since the last.

        Raises:
            UsageError: the settings name no database.
            AgentFileError: an agents file that does not import.
        """
        if settings.database_url is None:
            raise UsageError(
                "Steps are recorded in the service's database, and TIMESTEP_DATABASE_URL names none. "
                "Start the service: timestep up"
            )
        database = Database(settings.database_url)
        return cls(settings, ObjectStore.open(settings.storage), load_registry(settings), database)


async def publish(
    store: ObjectStore, output: StepOutput, *, summary: str, turns: list[dict[str, Any]] | None = None
) -> None:
    """Create the step's Prefect artifacts: the summary, the table of turns, links to stored objects.

    Raises:
        ServiceUnavailableError: Prefect's server is away.
    """
    summary, turns = whole(summary, nul=False), whole(turns, nul=False)  # they go to PostgreSQL
    artifacts = [acreate_markdown_artifact(key="summary", markdown=summary, description=f"Step of {output.agent}")]
    if turns:
        artifacts.append(acreate_table_artifact(key="turns", table=turns, description="Model and tool calls"))
    if output.artifacts:
        rows = [await _object_row(store, name, reference) for name, reference in output.artifacts.items()]
        text = "\n".join(["| object | bytes | sha256 |", "|---|---|---|", *rows])
        artifacts.append(acreate_markdown_artifact(key="objects", markdown=text, description="Stored objects"))
    with prefect_reached():
        await asyncio.gather(*artifacts)


def storable(error: Exception) -> Exception:
    """The error, with no NUL in its words: Prefect could not store the state that tells of it.

    Without its cause where it can't be told otherwise, since Prefect logs that as well.
    """
    words = whole(str(error), nul=False)
    if words == str(error):
        return error
    error.args = tuple(whole(argument, nul=False) for argument in error.args)
    if words == str(error):
        return error
    told = TimestepError(words).with_traceback(error.__traceback__)
    told.__suppress_context__ = True
    return told


async def _object_row(store: ObjectStore, name: str, reference: Reference) -> str:
    url = await store.presigned_url(reference.key, timedelta(days=7))
    shown = f"[{name}]({url})" if url else f"{name}: `{store.url}/{reference.key}`"
    return f"| {shown} | {reference.size} | `{reference.sha256[:16]}…` |"
