"""Decisions of people about the calls that a step waits with, and the step that goes on because of them."""

import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import PrefectHTTPStatusError

from timestep import runs
from timestep.agents.record.approvals import PENDING, Approvals, Asked, decided, expire, meant
from timestep.agents.record.step_view import ENDED, CallDecision
from timestep.agents.record.waiting import Decision, Kind
from timestep.database.engine import Database
from timestep.errors import ConflictError, NotFoundError, ServiceUnavailableError
from timestep.steps.views import answering, pages, read, status_of

logger = logging.getLogger(__name__)


async def decide(
    client: PrefectClient, database: Database, run_id: UUID, decisions: Iterable[CallDecision], by: str
) -> None:
    """Decide of calls that wait; when none waits any more, the step goes on. The same decision twice is one.

    Args:
        decisions: All are checked before the first is written.
        by: Who decides, for the record.

    Raises:
        NotFoundError: no such step, or it asked for no such call.
        UsageError: a verdict that doesn't fit the call, or lacks its text.
        ConflictError: decided otherwise already, or the digest is of another call; or the step has ended.
        ServiceUnavailableError: Prefect's server or the database is away.
    """
    approvals = Approvals(database, str(run_id))
    asked = await approvals.all()
    run = await read(client, run_id)
    chosen = [(meant(asked, one.call, one.verdict, one.digest), one) for one in decisions]
    if (status := status_of(run, [])) in ENDED and any(call.status == PENDING for call, _ in chosen):
        raise ConflictError(f"Step '{run_id}' has ended ({status}); nothing of it waits any more.")
    try:
        for call, decision in chosen:
            await approvals.decide(call, Decision(**decision.model_dump(include={"verdict", "text", "always"})), by)
    finally:
        # Should one of them be refused, the others may still have been all that was waited for.
        await go_on(client, database, run_id)


async def go_on(client: PrefectClient, database: Database, run_id: UUID) -> bool:
    """Resume a suspended step for which nothing is pending. Of several who do so at once, one does. True: this one."""
    asked = await Approvals(database, str(run_id)).all()
    if any(call.status == PENDING for call in asked):
        return False
    run = await read(client, run_id)
    if run.state is None or not run.state.is_paused():
        return False
    keyset = run.state.state_details.run_input_keyset
    values = await _form_values(client, run_id, keyset, asked) if keyset else None
    if await _resumed(client, run_id, values):
        return True
    # Another one may have been first. If not, Prefect did not like the values, which the step has no need of.
    async with answering(client):
        return await runs.resume(client, run_id)


async def sweep(client: PrefectClient, database: Database) -> None:
    """Decide by default what is past its deadline, and let every suspended step go on for which all is decided.

    Covers the moments in which a decision finds its step not suspended yet, and those who decide and are killed
    before they could resume it. A step that a person suspended is left alone: it waits with no form of ours.
    """
    await expire(database)
    suspended = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    async for found in pages(client, suspended):
        asking = [str(run.id) for run in found if run.state is not None and run.state.state_details.run_input_keyset]
        for step_id in await decided(database, asking):
            try:
                await go_on(client, database, UUID(step_id))
            except (ConflictError, NotFoundError) as error:
                logger.warning("%s", error)
            except ServiceUnavailableError as error:
                if not isinstance(error.__cause__, PrefectHTTPStatusError):
                    raise  # it is away for the others too; one that answers 500 may do so for this step alone
                logger.warning("Step '%s' can't go on now: %s", step_id, error)
            except Exception:
                logger.exception("Step '%s' can't go on", step_id)


async def _resumed(client: PrefectClient, run_id: UUID, values: dict[str, Any] | None) -> bool:
    """By Prefect's own way to resume: of two at once, the form can be handed in by one only."""
    try:
        async with answering(client):
            answer: OrchestrationResult[Any] = await client.resume_flow_run(run_id, values)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.CONFLICT:
            raise
        return False
    return answer.status is SetStateStatus.ACCEPT


async def _form_values(
    client: PrefectClient, run_id: UUID, keyset: dict[str, str], asked: list[Asked]
) -> dict[str, Any] | None:
    """What the form behind the Resume button would hold, had these decisions been taken in it."""
    stored = f"{keyset['response'].removesuffix('-response')}-calls"
    async with answering(client):
        found = await client.filter_flow_run_input(run_id, key_prefix=stored, limit=1, exclude_keys=set())
    decisions = {(call.position, call.kind): call.decision for call in asked}
    values: dict[str, Any] = {}
    for number, call in enumerate(found[0].decoded_value if found else [], 1):
        decision = decisions.get((call["position"], Kind(call["kind"])))
        if decision is not None:
            values[f"call_{number}"] = _fields(Kind(call["kind"]), decision)
    return values


def _fields(kind: Kind, decision: Decision) -> dict[str, Any]:
    verdict, text = decision.verdict.value, decision.text or ""
    if kind is Kind.QUESTION:
        return {"answer": text}
    return (
        {"decision": verdict, "text": text}
        if kind is Kind.CUT
        else {"decision": verdict, "reason": text, "always": decision.always}
    )
