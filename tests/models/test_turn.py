"""A turn reads the same however its text is cut into tokens."""

import itertools

import pytest

from timestep.models.chat import AssistantMessage
from timestep.models.turn import Turn

CALLS = (
    'Sure: \n<tool_call>\n{"name": "add", "arguments": {"a": "}\\n</tool", "b": {}}}\n</tool_call>'
    '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def read(text: str, size: int, **options: object) -> tuple[Turn, str, dict[int, str]]:
    """The turn, and what its pieces add up to: content, and arguments by index."""
    turn = Turn(**{"calls": True, **options})  # type: ignore[arg-type]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    deltas = [*itertools.chain.from_iterable(map(turn.feed, pieces)), *turn.close()]
    arguments: dict[int, str] = {}
    for call in itertools.chain.from_iterable(delta.get("tool_calls", ()) for delta in deltas):
        arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    return turn, "".join(delta.get("content", "") for delta in deltas), arguments


def calls(message: AssistantMessage) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in message.tool_calls]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 1000])
def test_text_and_calls_are_told_apart_at_any_cut(size: int) -> None:
    turn, content, arguments = read(CALLS, size)
    assert turn.message.content == content == "Sure:"
    assert calls(turn.message) == [("add", '{"a": "}\\n</tool", "b": {}}'), ("now", "{}")]
    assert arguments == {0: '{"a": "}\\n</tool", "b": {}}', 1: "{}"}


@pytest.mark.parametrize("size", [1, 2, 4, 1000])
def test_a_stop_sequence_ends_the_turn_and_is_not_shown(size: int) -> None:
    turn, content, _ = read("one, two. END three", size, stop=("END", "never"))
    assert turn.stopped
    assert content == "one, two."


@pytest.mark.parametrize("size", [1, 2, 4, 1000])
def test_what_only_began_like_a_marker_is_text(size: int) -> None:
    assert read("a <tool_c and EN", size, stop=("END",))[1] == "a <tool_c and EN"


def test_white_space_around_a_turn_is_no_part_of_it() -> None:
    assert read("\n\n hi  there \n", 1)[1] == "hi  there"
    assert read(" \n", 1)[0].message.content is None


def test_a_call_that_was_cut_off_keeps_what_there_is() -> None:
    turn, _, arguments = read(CALLS[:60], 3)
    assert calls(turn.message) == [("add", arguments[0])]
    assert '{"a": "}\\n</tool", "b": {}}'.startswith(arguments[0])


def test_without_tools_a_call_is_text() -> None:
    assert read(CALLS, 4, calls=False)[1] == CALLS
