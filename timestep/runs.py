"""Start flow runs by deployment name, follow and cancel them, read their results. Knows Prefect, not the flows."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType, TaskRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import TaskRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.results import ResultStore
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_RETRY_EXTRA_CODES,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from prefect.states import Cancelled, Cancelling, Failed, Running, Scheduled, Suspended
from pydantic import SecretStr

from storage.block import StorageBlock
from timestep import errors
from timestep.errors import (
    AuthenticationError,
    ConflictError,
    NotFoundError,
    RunFailedError,
    ServiceUnavailableError,
    UsageError,
)
from timestep.nesting import DEEPEST, nested

POLL_SECONDS = 0.2
REVIVE_SECONDS = 90.0  # a crashed run is started again by the service, unless nothing has come of it for this long
CANCEL_TRIES, CANCEL_SECONDS = 20, 0.05  # a run may come into another state just when it is cancelled
PAUSE_TRIES, PAUSE_SECONDS = 60, 0.25  # the same, and a start takes seconds
PAGE = 200  # most runs that Prefect's API returns at once
LARGEST = 2**63  # no number of a parameter is as large: Prefect's server writes none with more bits

_deployments: WeakKeyDictionary[PrefectClient, dict[str, UUID]] = WeakKeyDictionary()

# Whether the run of this id has a living process.
Alive = Callable[[UUID], Awaitable[bool]]


@asynccontextmanager
async def connect(api_url: str, login: str | None = None) -> AsyncIterator[PrefectClient]:
    """A client of the Prefect server at ``api_url``. It tries again for a minute what the server can't do just now.

    ``login`` is the 'user:password' that the server may ask for; without one, Prefect's own settings may know it.

    Raises:
        AuthenticationError: the server asks for a login, and knows no such one.
        ServiceUnavailableError: nothing answers there, or nothing but errors of the server's own.
    """
    settings: dict[Any, Any] = {
        PREFECT_API_URL: api_url,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        PREFECT_CLIENT_RETRY_EXTRA_CODES: {500},  # its answer while its database is away
    }
    if login is not None:
        settings[PREFECT_API_AUTH_STRING] = login
    with temporary_settings(settings):
        try:
            async with httpx.AsyncClient(timeout=5, trust_env=False) as probe:
                (await probe.get(f"{api_url}/health")).raise_for_status()
        except httpx.HTTPError as error:
            raise ServiceUnavailableError("Prefect server", api_url) from error
        try:
            async with get_client() as client:
                yield client
        except httpx.TransportError as error:
            raise ServiceUnavailableError("Prefect server", api_url) from error
        except PrefectHTTPStatusError as error:
            if error.response.status_code == 401:
                raise AuthenticationError(
                    f"The Prefect server at '{api_url}' asks for another login. Set TIMESTEP_PREFECT_AUTH=user:password"
                ) from error
            if error.response.status_code < 500:
                raise
            raise ServiceUnavailableError("Prefect server", api_url) from error


async def start(
    client: PrefectClient,
    deployment: str,
    parameters: dict[str, Any],
    *,
    idempotency_key: str | None = None,
    tags: Iterable[str] = (),
    labels: dict[str, str] | None = None,
) -> FlowRun:
    """Create a flow run of a deployment, named ``flow/deployment``; a key makes it at most one.

    Raises:
        NotFoundError: no such deployment.
        UsageError: the parameters are not what the flow takes, or hold what can't be stored.
    """
    for name, value in {**parameters, "metadata": labels or {}}.items():
        if (why := _unstorable(value)) is not None:
            raise UsageError(f"Parameter '{name}' {why}")
    known = deployment in _deployments.setdefault(client, {})
    # Without a key, a request that is tried again could start two.
    key = idempotency_key or str(uuid4())
    try:
        return await client.create_flow_run_from_deployment(
            await _deployment(client, deployment),
            parameters=parameters,
            idempotency_key=key,
            tags=list(tags),
            labels={**labels} if labels else None,
        )
    except PrefectHTTPStatusError as error:
        if error.response.status_code == 404 and known:  # it was deleted, and may have been made anew
            del _deployments[client][deployment]
            return await start(client, deployment, parameters, idempotency_key=key, tags=tags, labels=labels)
        if error.response.status_code not in (409, 422):
            raise
        detail = error.response.json().get("detail", error.response.text)
        raise UsageError(str(detail).removeprefix("Error creating flow run: ")) from error


async def _deployment(client: PrefectClient, name: str) -> UUID:
    """The id of a deployment, asked for once: Prefect's answer holds all of it."""
    known = _deployments[client]
    if name not in known:
        try:
            known[name] = (await client.read_deployment_by_name(name)).id
        except ObjectNotFound as error:
            raise NotFoundError("deployment", name) from error
    return known[name]


def _unstorable(value: Any) -> str | None:
    """Why Prefect can't store the value, or couldn't tell of it: a run with such a parameter spoils every list."""
    for one, depth in nested(value):
        if depth > DEEPEST:
            return f"is nested deeper than {DEEPEST} levels."
        if isinstance(one, str):
            if "\0" in one or any("\ud800" <= character <= "\udfff" for character in one):
                return "holds a NUL character or half a surrogate pair. Give text without."
        elif isinstance(one, int | float) and not abs(one) < LARGEST:  # nor NaN
            return "holds a number of more than 63 bits, or none at all."
    return None


async def resume(client: PrefectClient, run_id: UUID) -> bool:
    """Let a suspended run go on, whatever its form asks for; False where it isn't suspended, and nothing is done."""
    run = await client.read_flow_run(run_id)
    if run.state is None or not run.state.is_paused():
        return False
    if run.state.state_details.run_input_keyset is None:
        # The server looks once more, so that of several who do this one does, and none starts a run that goes on.
        return (await client.resume_flow_run(run_id)).status is SetStateStatus.ACCEPT
    # By the way above, the server would insist on the form.
    await client.set_flow_run_state(run_id, Scheduled(name="Resuming"))
    return True


async def pause(client: PrefectClient, run_id: UUID) -> FlowRun:
    """Suspend a run by a person's wish: its process, where it has one, sees that and stops. Returns it suspended.

    Raises:
        ConflictError: it has ended, or is being cancelled; or its state changed all the time.
        ObjectNotFound: no such run.
    """
    seen = 0
    for _ in range(PAUSE_TRIES):
        run = await client.read_flow_run(run_id)
        state = run.state or Scheduled()
        if (state.is_final() and not state.is_crashed()) or state.is_cancelling():
            raise ConflictError(f"Run '{run_id}' is {state.name}: it can't be paused.")
        if state.is_paused():
            seen += 1
            if seen > 1:
                return run
        elif state.is_running():
            await client.set_flow_run_state(run_id, Suspended())
        elif not state.is_pending():
            # No process has it, which Prefect takes for a reason not to. Should one come just now, it is seen above.
            await client.set_flow_run_state(run_id, Suspended(), force=True)
        await asyncio.sleep(PAUSE_SECONDS)
    raise ConflictError(f"Run '{run_id}' could not be paused. Try again.")


async def cancel(client: PrefectClient, run_id: UUID, alive: Alive) -> FlowRun:
    """Have a run end: at once where no process runs it, else by its worker or the service within seconds.

    Returns the run: cancelled, on its way there, or ended otherwise before.

    Raises:
        ConflictError: its state changed all the time.
        ObjectNotFound: no such run.
    """
    for _ in range(CANCEL_TRIES):
        run = await client.read_flow_run(run_id)
        over = run.state is not None and run.state.is_final() and not run.state.is_crashed()
        if over or (run.state is not None and run.state.is_cancelling()):
            return run
        if run.state is not None and run.state.is_crashed():
            # Prefect takes it for ended and lets it come to no Cancelling, but the service starts it again.
            if not await alive(run_id):
                await client.set_flow_run_state(run_id, Cancelled())
                continue
            # It was called crashed too early, and its process is to be told.
            await client.set_flow_run_state(
                run_id, Running(message="Its process lives: it was called crashed too early.")
            )
        await client.set_flow_run_state(run_id, Cancelling())
        await asyncio.sleep(CANCEL_SECONDS)
    raise ConflictError(f"Run '{run_id}' could not be cancelled. Try again.")


async def cancel_started(client: PrefectClient, run_id: UUID, alive: Alive) -> None:
    """Cancel the runs that this run started, which is to say: with a key that begins with its id, as a batch's do."""
    going = [kind for kind in StateType if kind not in TERMINAL_STATES or kind is StateType.CRASHED]
    chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=going)))
    started: list[UUID] = []
    offset, more = 0, True
    while more:
        page = await client.read_flow_runs(flow_run_filter=chosen, limit=PAGE, offset=offset)
        started += [run.id for run in page if (run.idempotency_key or "").startswith(f"{run_id}-")]
        offset, more = offset + PAGE, len(page) == PAGE
    for child in started:
        with suppress(ConflictError, ObjectNotFound):
            await cancel(client, child, alive)


def has_ended(run: FlowRun) -> bool:
    """Whether the run is over: a crashed one is not, for as long as the service may start it again."""
    if run.state is None or not run.state.is_final():
        return False
    age = (datetime.now(UTC) - run.state.timestamp).total_seconds()
    return not run.state.is_crashed() or age > REVIVE_SECONDS


async def wait(client: PrefectClient, run_ids: set[UUID]) -> list[FlowRun]:
    """Wait until at least one of the runs has ended; returns those that have. One that is deleted has failed."""
    while True:
        runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(run_ids))))
        # A list holds only so many.
        runs += [await _missing(client, run_id) for run_id in run_ids - {run.id for run in runs}]
        ended = [run for run in runs if has_ended(run)]
        if ended:
            return ended
        await asyncio.sleep(POLL_SECONDS)


async def _missing(client: PrefectClient, run_id: UUID) -> FlowRun:
    """A run that a list lacks: as it is, or as one that failed where there is none."""
    try:
        return await client.read_flow_run(run_id)
    except ObjectNotFound:
        return FlowRun(id=run_id, flow_id=UUID(int=0), state=Failed(message=_deleted(run_id)))


def _deleted(run_id: UUID) -> str:
    return f"Flow run '{run_id}' was deleted."


async def follow(
    client: PrefectClient,
    run_id: UUID,
    *,
    on_state: Callable[[str], None],
    on_task: Callable[[TaskRun], None],
    on_progress: Callable[[float, str], None],
) -> FlowRun:
    """Report a run's changes of state, its finished tasks and its progress until it has ended.

    Raises:
        RunFailedError: it was deleted.
    """
    seen: set[UUID] = set()
    state = progress = None
    while True:
        try:
            run = await client.read_flow_run(run_id)
        except ObjectNotFound as error:
            raise RunFailedError(_deleted(run_id)) from error
        ended = has_ended(run)
        if ended:
            await asyncio.sleep(POLL_SECONDS)  # the last task's record arrives by way of events, a little later
        if run.state is not None and run.state.name and run.state.name != state:
            state = run.state.name
            on_state(state)
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        tasks = await client.read_task_runs(flow_run_filter=chosen, sort=TaskRunSort.END_TIME_DESC)
        for task in reversed(tasks):
            if task.id not in seen and task.state is not None and task.state.is_final():
                seen.add(task.id)
                on_task(task)
        bars = await client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), type=ArtifactFilterType(any_=["progress"])
            )
        )
        for bar in bars[:1]:
            if isinstance(bar.data, int | float) and (bar.data, bar.description) != progress:
                progress = (bar.data, bar.description)
                on_progress(float(bar.data), bar.description or "")
        if ended:
            return run
        await asyncio.sleep(POLL_SECONDS)


async def result(run: FlowRun, storage_url: str) -> Any:
    """What a run returned, read from the service's storage.

    Not by way of the run's own block: looking that up makes Prefect import every collection that is installed.

    Raises:
        RunFailedError: it did not complete.
        NotFoundError: its result is not in this storage.
    """
    data = run.state.data if run.state else None
    if run.state is None or not run.state.is_completed():
        raise RunFailedError(_words(run))
    key = getattr(data, "storage_key", None)
    if key is None:
        raise NotFoundError("result", str(run.id))
    try:
        record = await ResultStore(result_storage=StorageBlock(url=SecretStr(storage_url))).aread(key)
    except ValueError as error:
        raise NotFoundError("result", str(run.id)) from error
    return record.result


def _words(run: FlowRun) -> str:
    """What the run's final state says, the way the error said it that ended it."""
    words = (run.state and (run.state.message or run.state.name)) or "It never started."
    if run.state is not None and run.state.is_crashed():
        return f"Nobody started it again after its crash: {words} Is the service up? timestep status"
    # Prefect writes an exception as "Flow run encountered an exception: Kind: words".
    words = words.removeprefix("Flow run encountered an exception: ")
    kind, _, sentence = words.partition(": ")
    return sentence if hasattr(errors, kind) else words
