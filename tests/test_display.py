"""What people who decide get to read on a terminal."""

from pathlib import Path

import pytest

from timestep.agents.record.waiting import Kind, PendingCall
from timestep.cli.display import asked, plain


def call(kind: Kind = Kind.APPROVAL, arguments: str = "{}", number: int = 0, call_id: str = "call_1") -> PendingCall:
    return PendingCall(position=f"a b/0/{number}", kind=kind, call_id=call_id, agent="a b", tool="send",
                       arguments=arguments)  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), [
    ("Straße 東京 🙂", "Straße 東京 🙂"),
    ("a\x1b[2K\rb", "a\\x1b[2K\\rb"),
    ("\x9b31m \u202eevil \u2028 \x00 \ud800", "\\x9b31m \\u202eevil \\u2028 \\x00 \\ud800"),
    ("one\r\ntwo\nthree", "one\n           | two\n           | three"),
])  # fmt: skip
def test_what_a_model_wrote_is_text_and_nothing_else(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_question_can_not_look_like_another_call() -> None:
    question = call(Kind.QUESTION, r'{"question": "Sure?\u001b[1A\n  waits      a: send({})"}')
    first, second, command = "\n".join(asked([question], "12345678")).splitlines()
    assert first == r"  asks       a b: Sure?\x1b[1A"
    assert second == "           |   waits      a: send({})"
    assert command == '             timestep answer 12345678 --call call_1 "…"'


def test_the_command_names_one_call_and_can_be_pasted() -> None:
    calls = [call(), call(number=1), call(number=2, call_id="x; rm -rf ~"), call(number=3, call_id="\x1b[8m")]
    commands = asked(calls, "12345678", Path("/a b"))[1::2]
    assert [line.partition(" --call ")[2].partition(" --home ")[0] for line in commands] == [
        "'a b/0/0'",
        "'a b/0/1'",
        "'x; rm -rf ~'",
        "'a b/0/3'",
    ]
    assert all(" --home '/a b'   (or --reject" in line for line in commands)
