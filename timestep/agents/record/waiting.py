"""What a step asks of people, as plain data: a call that waits, and what was decided of it."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum

from pydantic import BaseModel


class Kind(StrEnum):
    """Why a call waits: its tool needs an approval, asks a question, or was cut and may not run again by itself."""

    APPROVAL = "approval"
    QUESTION = "question"
    CUT = "cut"


class Verdict(StrEnum):
    """What a person decides: the first two of an approval, ``answer`` of a question, the others of a cut call."""

    APPROVE = "approve"
    REJECT = "reject"
    ANSWER = "answer"
    RUN_AGAIN = "run_again"
    RESULT = "result"
    FAIL = "fail"


class PendingCall(BaseModel):
    """A call that waits: where in its step, and what it would do. ``arguments`` is the model's JSON text."""

    position: str
    kind: Kind
    call_id: str
    agent: str
    tool: str
    arguments: str

    @property
    def digest(self) -> str:
        """sha256 (hex) of the tool and its arguments; a decision counts for equal ones only."""
        return call_digest(self.tool, self.arguments)


class Decision(BaseModel):
    """A verdict with its text: the reason of a rejection, the answer to a question, the result of a cut call."""

    verdict: Verdict
    text: str | None = None
    always: bool = False


# Decisions of these calls, by position; suspends the step (by an exception) where a person is still needed.
Decide = Callable[[list[PendingCall]], Awaitable[dict[str, Decision]]]


def call_digest(tool: str, arguments: str) -> str:
    """sha256 (hex) of a tool's name and its arguments, whose spelling as JSON doesn't matter."""
    with suppress(ValueError):  # no JSON: the text as it is
        arguments = json.dumps(json.loads(arguments), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{tool}\n{arguments}".encode()).hexdigest()
