"""What a step asked of people and what they decided: the rows of ``approvals``. Knows nothing of forms or flow runs.

A call is asked for once, decided once (by compare-and-set: of two people at once, one wins) and consumed once, in the
transaction that begins the call. Each row is bound to the digest of its tool and arguments.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, case, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from timestep.agents.record.lease import Lease
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict
from timestep.database.engine import Database
from timestep.database.models import ApprovalRow, StepRow
from timestep.errors import ConflictError, NotFoundError, UsageError

PENDING, DECIDED, CONSUMED = "pending", "decided", "consumed"
NOBODY = "deadline"  # who decided, where the time was up

# Of each kind: the verdicts that settle it.
VERDICTS = {
    Kind.APPROVAL: (Verdict.APPROVE, Verdict.REJECT),
    Kind.QUESTION: (Verdict.ANSWER,),
    Kind.CUT: (Verdict.RUN_AGAIN, Verdict.RESULT, Verdict.FAIL),
}
_NEEDS_TEXT = (Verdict.ANSWER, Verdict.RESULT)
_TAKES_TEXT = (Verdict.REJECT, Verdict.ANSWER, Verdict.RESULT, Verdict.FAIL)
_WORDS = {
    Verdict.APPROVE: "approved",
    Verdict.REJECT: "rejected",
    Verdict.ANSWER: "answered",
    Verdict.RUN_AGAIN: "told to run again",
    Verdict.RESULT: "given its result",
    Verdict.FAIL: "failed",
}

_rows = ApprovalRow.__table__.c
_CALL = tuple(PendingCall.model_fields)


class Asked(PendingCall):
    """A call that a person was asked about, with what came of it; ``decision`` is None while it is pending."""

    status: str
    decision: Decision | None
    decided_by: str | None
    decided_at: datetime | None
    deadline_at: datetime | None


class Approvals:
    """What one step asks. With a ``lease``, a process that another has superseded asks nothing: it ends."""

    def __init__(self, database: Database, step_id: str, lease: Lease | None = None) -> None:
        self._database, self._step_id, self._lease = database, step_id, lease

    async def ask(
        self, calls: Iterable[PendingCall], deadline: timedelta | None = None, default: Verdict = Verdict.REJECT
    ) -> None:
        """Ask for these calls; repeated for equal calls, nothing changes.

        A decision for other arguments doesn't count: that call is asked for anew. So is a call that was cut once
        more, after a person had told it to run again; and one that failed its step, once that is started again.

        Args:
            calls: What waits.
            deadline: From now on; after it, ``default`` is decided. None waits for ever, as cut calls always do.
            default: ``approve`` or ``reject``. A question gets an answer that says that nobody answered.
        """
        values = [self._asked(call, deadline, default) for call in calls]
        if not values:
            return
        statement = insert(ApprovalRow).values(values)
        fresh = {column.name: statement.excluded[column.name] for column in _rows if column.name != "created_at"}
        statement = statement.on_conflict_do_update(
            index_elements=[_rows.step_id, _rows.position, _rows.kind],
            set_={**fresh, "created_at": func.now()},
            where=or_(
                _rows.digest != statement.excluded.digest,
                and_(_rows.kind == Kind.CUT.value, _rows.status == CONSUMED, _rows.verdict != Verdict.RESULT.value),
            ),
        )
        async with self._database.session() as session:
            if self._lease is not None:
                current = select(StepRow.attempt).where(StepRow.id == self._step_id).with_for_update(read=True)
                if await session.scalar(current) != self._lease.attempt:
                    self._lease.superseded()
            await session.execute(statement)

    async def decisions(self, calls: Iterable[PendingCall]) -> dict[str, Decision]:
        """What is decided of these calls, by position; those that are still pending are left out."""
        wanted = {(call.position, call.kind.value): call.digest for call in calls}
        found = [row for row in await self._read() if row.status != PENDING]
        return {row.position: _decision(row) for row in found if wanted.get((row.position, row.kind)) == row.digest}

    async def decide(self, call: str | PendingCall, decision: Decision, by: str) -> None:
        """Decide of this call, or of the one with this id or at this position; the same decision twice is one.

        Raises:
            NotFoundError: the step asked for no such call.
            UsageError: a verdict that doesn't fit the kind of what is asked, or that lacks its text.
            ConflictError: it was decided otherwise; the message says how, and by whom.
        """
        decision = _fitting(decision)
        if not isinstance(call, PendingCall):
            call = meant(await self.all(), call, decision.verdict)
        elif decision.verdict not in VERDICTS[call.kind]:
            raise _unfit(call, decision.verdict)
        values = {"status": DECIDED, "decided_by": _text(by), "decided_at": func.now()}
        pending = and_(self._at(call), _rows.status == PENDING, _rows.digest == call.digest)
        async with self._database.session() as session:
            made = update(ApprovalRow).where(pending).values(values | decision.model_dump(mode="json"))
            if await session.scalar(made.returning(_rows.position)):
                return
            decided = (await session.execute(select(*_rows).where(self._at(call)))).one_or_none()
        if decided is None:
            raise NotFoundError("call", call.call_id)
        if decided.digest != call.digest or decided.status == PENDING:  # asked about anew meanwhile
            raise changed(_call(decided))
        if _decision(decided) != decision:
            raise ConflictError(f"Call '{call.call_id}' ({decided.tool}) was {told(decided)}.")

    async def pending(self) -> list[PendingCall]:
        """What waits for a person, in the order of the positions."""
        return [_call(row) for row in await self._read() if row.status == PENDING]

    async def all(self) -> list[Asked]:
        """Everything that was asked, decided or not, in the order of the asking."""
        return [_as_asked(row) for row in await self._read()]

    async def failing(self) -> bool:
        """Whether there is a decision to fail of which nothing is known to have come."""
        return any(row.status == DECIDED and row.verdict == Verdict.FAIL for row in await self._read())

    async def failed(self) -> None:
        """Note that the decisions to fail have done so: of a step that is started again, people are asked again."""
        at = and_(_rows.step_id == self._step_id, _rows.status == DECIDED, _rows.verdict == Verdict.FAIL.value)
        async with self._database.session() as session:
            await session.execute(update(ApprovalRow).where(at).values(status=CONSUMED, consumed_at=func.now()))

    def _asked(self, call: PendingCall, deadline: timedelta | None, default: Verdict) -> dict[str, Any]:
        if call.kind is Kind.CUT:
            deadline = None  # whether it ran is a fact that no default knows
        verdict = Verdict.ANSWER if call.kind is Kind.QUESTION else default
        return {
            "step_id": self._step_id,
            **{name: _text(value) for name, value in call.model_dump(mode="json").items()},
            "digest": call.digest,
            "status": PENDING,
            "verdict": None,
            "text": None,
            "always": False,
            "decided_by": None,
            "decided_at": None,
            "consumed_at": None,
            "deadline_at": None if deadline is None else func.now() + deadline,
            "default_verdict": None if deadline is None else verdict.value,
        }

    def _at(self, call: PendingCall) -> Any:
        return and_(_rows.step_id == self._step_id, _rows.position == call.position, _rows.kind == call.kind.value)

    async def _read(self) -> list[Row[Any]]:
        mine = select(*_rows).where(_rows.step_id == self._step_id).order_by(_rows.created_at, _rows.position)
        async with self._database.session() as session:
            return list(await session.execute(mine))


async def asked_by(database: Database, step_ids: list[str]) -> dict[str, list[Asked]]:
    """Everything that each of these steps asked, in the order of the asking."""
    found: dict[str, list[Asked]] = {step_id: [] for step_id in step_ids}
    chosen = select(*_rows).where(_rows.step_id.in_(step_ids)).order_by(_rows.created_at, _rows.position)
    async with database.session() as session:
        for row in await session.execute(chosen):
            found[row.step_id].append(_as_asked(row))
    return found


def meant(asked: list[Asked], call: str | None, verdict: Verdict, digest: str | None = None) -> Asked:
    """The call that a decision is about: by position, by id, or the only one that waits.

    An id may stand for two at one position, an approval and the cut call that came of it: the verdict tells them
    apart. It may stand for calls at several positions as well, since ids are the model's: then the digest or the
    position has to.

    Raises:
        NotFoundError: the step asked for no such call.
        UsageError: the verdict doesn't fit, or it isn't plain which call is meant.
        ConflictError: the digest is of another call.
    """
    pending = [one for one in asked if one.status == PENDING]
    named = pending if call is None else [one for one in asked if call in (one.position, one.call_id)]
    if not named and call is not None:
        raise NotFoundError("call", call, names(pending))
    if call is None and len(named) != 1:
        which = ", ".join(f"'{name}'" for name in names(pending)) or "none"
        raise UsageError(f"Say which call is meant by 'call'. These wait: {which}.")
    fitting = [one for one in named if verdict in VERDICTS[one.kind]]
    if not fitting:
        raise _unfit(named[-1], verdict)
    matching = [one for one in fitting if digest in (None, one.digest)]
    if not matching:
        raise changed(next((one for one in fitting if one.status == PENDING), fitting[-1]))
    waiting = [one for one in matching if one.status == PENDING]
    if len(waiting) > 1:
        positions = " or ".join(f"'{one.position}'" for one in waiting)
        raise UsageError(f"{len(waiting)} calls that wait have the id '{call}'. Say the position instead: {positions}.")
    return (waiting or matching)[-1]


def names(calls: Iterable[PendingCall]) -> list[str]:
    """A name for each of these calls that is no other's: the id, or the position where ids repeat."""
    calls = list(calls)
    ids = Counter(call.call_id for call in calls)
    return [call.call_id if ids[call.call_id] == 1 else call.position for call in calls]


def changed(call: PendingCall) -> ConflictError:
    """A decision was made of another call than the one that is asked about now."""
    return ConflictError(
        f"Call '{call.call_id}' is another than the one you decided of: it is now {call.tool}({call.arguments})."
    )


def _unfit(call: PendingCall, verdict: Verdict) -> UsageError:
    allowed = " or ".join(f"'{one}'" for one in VERDICTS[call.kind])
    return UsageError(f"Call '{call.call_id}' ({call.tool}) can't be decided by '{verdict}', only by {allowed}.")


async def expire(database: Database) -> list[str]:
    """Decide by default what waits past its deadline; returns the ids of the steps concerned."""
    # Spelled out, or a plan for any status could not go by the index of those that are pending.
    due = and_(_rows.status == literal(PENDING, literal_execute=True), _rows.deadline_at < func.now())
    text = case(
        (_rows.default_verdict == Verdict.ANSWER.value, literal("Nobody answered before the deadline.")),
        (_rows.default_verdict == Verdict.REJECT.value, literal("Nobody decided before the deadline.")),
    )
    decided = {"status": DECIDED, "verdict": _rows.default_verdict, "text": text}
    noted = {"decided_by": NOBODY, "decided_at": func.now()}
    async with database.session() as session:
        found = await session.scalars(update(ApprovalRow).where(due).values(decided | noted).returning(_rows.step_id))
        return sorted(set(found))


async def decided(database: Database, step_ids: Iterable[str]) -> list[str]:
    """Those of the steps that have asked, and for which no call is pending any more: suspended, they can go on."""
    open_calls = func.count().filter(_rows.status == PENDING)
    chosen = select(_rows.step_id).where(_rows.step_id.in_(list(step_ids)))
    async with database.session() as session:
        return list(await session.scalars(chosen.group_by(_rows.step_id).having(open_calls == 0)))


def told(row: Any) -> str:
    """What was decided, by whom and when, as the end of a sentence."""
    text = f" ('{row.text}')" if row.text else ""
    always = ", for the whole run" if row.always else ""
    return f"{_WORDS[Verdict(row.verdict)]}{text}{always} by {row.decided_by} at {row.decided_at:%Y-%m-%d %H:%M:%S %Z}"


def _fitting(decision: Decision) -> Decision:
    """The decision without what its verdict has no use for."""
    text = _text(decision.text).strip() if decision.text else None
    if decision.verdict in _NEEDS_TEXT and not text:
        raise UsageError(f"The decision '{decision.verdict}' needs a text.")
    return Decision(
        verdict=decision.verdict,
        text=(text or None) if decision.verdict in _TAKES_TEXT else None,
        always=decision.always and decision.verdict in VERDICTS[Kind.APPROVAL],
    )


def _text(value: str) -> str:
    """PostgreSQL's text holds no NUL, nor half of a character."""
    return value.replace("\x00", "�").encode(errors="replace").decode()


def _call(row: Row[Any]) -> PendingCall:
    return PendingCall(**{name: row._mapping[name] for name in _CALL})


def _as_asked(row: Row[Any]) -> Asked:
    return Asked(
        **_call(row).model_dump(),
        status=row.status,
        decision=None if row.status == PENDING else _decision(row),
        decided_by=row.decided_by,
        decided_at=row.decided_at,
        deadline_at=row.deadline_at,
    )


def _decision(row: Row[Any]) -> Decision:
    return Decision(verdict=Verdict(row.verdict), text=row.text, always=row.always)
