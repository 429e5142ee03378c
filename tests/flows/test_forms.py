"""What a form shows of a call, and what is read from it; without a server."""

import json
from typing import Any

import pytest

from flows.forms import LONGEST_ARGUMENT, _read, form, markdown, question
from timestep.agents.record.waiting import Decision, Kind, PendingCall, Verdict


def call(kind: Kind = Kind.APPROVAL, arguments: str = '{"path": "/etc"}', tool: str = "delete") -> PendingCall:
    return PendingCall(position="a/0/0", kind=kind, call_id="c", agent="clean*er", tool=tool, arguments=arguments)


def test_each_argument_is_a_paragraph_of_code() -> None:
    shown = markdown(call(arguments=json.dumps({"path": "a`b\nc", "force": True})))
    assert shown.split("\n\n") == [
        "Agent **clean\\*er**: this call of `delete` needs your approval.",
        'path: `` "a`b\\nc" ``',
        "force: `true`",
    ]


def test_what_is_no_object_is_shown_as_it_is() -> None:
    assert markdown(call(arguments="not {json")).endswith("\n\n`not {json`")


def test_long_arguments_are_cut_and_say_where_all_of_them_are() -> None:
    shown = markdown(call(arguments=json.dumps({"text": "x" * 5000})))
    assert len(shown) < LONGEST_ARGUMENT + 200
    assert "4002 more characters: timestep show STEP" in shown


def test_a_question_cannot_bring_markup_of_its_own() -> None:
    asked = call(Kind.QUESTION, json.dumps({"question": "Where?\n\n![x](http://h/x.png) <b>"}), tool="ask_user")
    assert markdown(asked).split("\n\n")[1:] == ["> Where?", "> \\!\\[x\\](http://h/x.png) \\<b\\>"]
    assert question(call(Kind.QUESTION, "no json")) == "no json"


def test_the_form_asks_of_each_call_what_its_kind_needs() -> None:
    made = form([call(), call(Kind.QUESTION), call(Kind.CUT)])
    schema: dict[str, Any] = made.model_json_schema()
    assert schema["required"] == ["call_1", "call_2", "call_3"]
    # Prefect's database forgets the order of keys.
    assert [schema["properties"][f"call_{n}"]["position"] for n in (1, 2, 3)] == [1, 2, 3]
    parts = {name: set(part["properties"]) for name, part in schema["$defs"].items()}
    assert parts == {"Approval": {"decision", "reason", "always"}, "Question": {"answer"}, "Cut": {"decision", "text"}}


@pytest.mark.parametrize(
    ("kind", "values", "decided"),
    [
        (Kind.APPROVAL, {"decision": "approve", "reason": "", "always": True}, (Verdict.APPROVE, None, True)),
        (Kind.APPROVAL, {"decision": "reject", "reason": "no"}, (Verdict.REJECT, "no", False)),
        (Kind.QUESTION, {"answer": "blue"}, (Verdict.ANSWER, "blue", False)),
        (Kind.CUT, {"decision": "result", "text": "paid"}, (Verdict.RESULT, "paid", False)),
        (Kind.APPROVAL, {"decision": "perhaps"}, None),
        (Kind.QUESTION, {}, None),
    ],
)
def test_a_submission_is_read_as_decisions(
    kind: Kind, values: dict[str, Any], decided: tuple[Verdict, str | None, bool] | None
) -> None:
    found = [decision for _, decision in _read([call(kind)], {"call_1": values})]
    expected = decided and Decision(verdict=decided[0], text=decided[1], always=decided[2])
    assert found == ([expected] if expected else [])
