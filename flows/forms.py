"""The form behind a suspended step's Resume button: what it shows of each call, what a person can fill in, what was.

Made of Prefect's run inputs. Beside the form's schema lie the calls it was made for, so that whoever reads a
submitted form, in whatever process, knows what each of its fields was about.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.exceptions import PrefectHTTPStatusError
from prefect.input import RunInput
from prefect.input.actions import acreate_flow_run_input
from prefect.input.run_input import Keyset, keyset_from_base_key
from pydantic import BaseModel, Field, TypeAdapter, create_model

from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict

LONGEST_ARGUMENT = 1_000  # characters shown of each
_PREFIX = "suspended-"  # Prefect's, of every key that belongs to a suspension

_calls = TypeAdapter(list[PendingCall])


def _at(position: int) -> dict[str, Any]:
    """Prefect's database forgets the order of JSON keys; its form goes by ``position``."""
    return {"position": position}


class Approval(BaseModel):
    """The fields of a call that needs an approval."""

    decision: Literal["approve", "reject"] = Field(title="Decision", json_schema_extra=_at(0))
    reason: str = Field("", title="Reason", description="The model is told why you reject.", json_schema_extra=_at(1))
    always: bool = Field(
        False,
        title="Always for this run",
        description="Decide the same of every later call of this tool.",
        json_schema_extra=_at(2),
    )

    def decided(self) -> Decision:
        """What was filled in."""
        return Decision(verdict=Verdict(self.decision), text=self.reason or None, always=self.always)


class Question(BaseModel):
    """The field of a question."""

    answer: str = Field(title="Answer", min_length=1)

    def decided(self) -> Decision:
        """What was filled in."""
        return Decision(verdict=Verdict.ANSWER, text=self.answer)


class Cut(BaseModel):
    """The fields of a call that was cut."""

    decision: Literal["run_again", "result", "fail"] = Field(
        title="Decision",
        description="run_again: call it once more. result: it did run, the result is below. fail: end the step.",
        json_schema_extra=_at(0),
    )
    text: str = Field("", title="Result, or why it fails", json_schema_extra=_at(1))

    def decided(self) -> Decision:
        """What was filled in."""
        return Decision(verdict=Verdict(self.decision), text=self.text or None)


_FIELDS: dict[Kind, type[Approval | Question | Cut]] = {
    Kind.APPROVAL: Approval,
    Kind.QUESTION: Question,
    Kind.CUT: Cut,
}
_ASKS = {
    Kind.APPROVAL: "needs your approval",
    Kind.QUESTION: "asks you",
    Kind.CUT: "was cut in the middle by a crash, and may have run: look, then decide",
}


class Form(RunInput):
    """Base of the forms. Saved with the calls it is about, and before the run is suspended rather than after."""

    @classmethod
    async def asave(cls, keyset: Keyset, flow_run_id: UUID | None = None) -> None:
        """Nothing: Prefect saves a form after it has suspended the run; this one lies there already."""

    @classmethod
    async def save_with(cls, calls: list[PendingCall], key: str) -> None:
        """Save the form, so that a run suspended by this key has it from the first moment."""
        await _save(f"{_PREFIX}{key}-calls", _calls.dump_python(calls, mode="json"))
        with _there_already():
            await super().asave(keyset_from_base_key(_PREFIX + key))


def form(calls: list[PendingCall]) -> type[Form]:
    """A form with a group of fields, ``call_1``, ``call_2``, …, for each call."""
    groups: dict[str, Any] = {
        f"call_{number}": (
            _FIELDS[call.kind],
            Field(title=f"{number} · {call.tool}", description=markdown(call), json_schema_extra=_at(number)),
        )
        for number, call in enumerate(calls, 1)
    }
    made = create_model("Decisions", __base__=Form, **groups)
    # No more than a line: the dialog gives all height to the fields where they need it.
    made._description = "This step goes on when " + (
        "this is decided." if len(calls) == 1 else f"these {len(calls)} calls are decided."
    )
    return made


def markdown(call: PendingCall) -> str:
    """What stands above a call's fields: its agent, its tool and its arguments, each a paragraph of its own.

    The form keeps blank lines and joins all others, code blocks too. What the model wrote stays text: no links, no
    pictures to load.
    """
    agent = f"Agent **{_escaped(call.agent)}**"
    if call.kind is Kind.QUESTION:
        lines = [f"> {_escaped(line)}" for line in question(call).splitlines() if line.strip()]
        return "\n\n".join([f"{agent} {_ASKS[call.kind]}:", *lines])
    return "\n\n".join([f"{agent}: this call of {_code(call.tool)} {_ASKS[call.kind]}.", *_arguments(call)])


@dataclass(frozen=True)
class Submitted:
    """A form that a person filled in: Prefect's key of it, and the decisions; none where it makes no sense."""

    key: str
    decisions: list[tuple[PendingCall, Decision]]


async def submitted(client: PrefectClient, run_id: UUID) -> list[Submitted]:
    """What people filled into this run's forms, oldest first."""
    inputs = await client.filter_flow_run_input(run_id, key_prefix=_PREFIX, limit=1_000, exclude_keys=set())
    stored = {item.key: item for item in sorted(inputs, key=lambda item: str(item.created))}
    found = []
    for key, item in stored.items():
        base = key.removesuffix("-response")
        if key != base:
            calls = stored.get(f"{base}-calls")
            asked = [] if calls is None else _calls.validate_python(calls.decoded_value)
            found.append(Submitted(key, _read(asked, item.decoded_value)))
    return found


async def _save(key: str, value: Any) -> None:
    with _there_already():
        await acreate_flow_run_input(key=key, value=value)


@contextmanager
def _there_already() -> Iterator[None]:
    """A request whose answer was lost is made again, and finds what it had made."""
    try:
        yield
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.CONFLICT:
            raise


def _read(calls: Iterable[PendingCall], values: Any) -> list[tuple[PendingCall, Decision]]:
    read = []
    for number, call in enumerate(calls, 1):
        try:
            fields = _FIELDS[call.kind].model_validate(values[f"call_{number}"])
        except (LookupError, TypeError, ValueError):  # not by our form: Prefect has checked what came from it
            continue
        read.append((call, fields.decided()))
    return read


def question(call: PendingCall) -> str:
    """The question's text, however the model wrote its arguments."""
    try:
        return str(json.loads(call.arguments)["question"])
    except (ValueError, LookupError, TypeError):
        return call.arguments


def _arguments(call: PendingCall) -> list[str]:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        return [_code(_cut(call.arguments))]
    return [f"{_escaped(name)}: {_code(_cut(_shown(value)))}" for name, value in arguments.items()]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _code(text: str) -> str:
    # A fence longer than any in the text: it can't end the code and go on as markdown of its own.
    fence = "`"
    while fence in text:
        fence += "`"
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _escaped(text: str) -> str:
    return text.translate({ord(char): f"\\{char}" for char in "\\`*_[]<>|!#"})


def _cut(text: str) -> str:
    if len(text) <= LONGEST_ARGUMENT:
        return text
    return f"{text[:LONGEST_ARGUMENT]}… ({len(text) - LONGEST_ARGUMENT} more characters: timestep show STEP)"
