"""The lines of a batch's file: each that can't be asked is refused by itself, and says why."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from timestep.batches.lines import Checked, Endpoint, check, numbered, parse

LONGEST = 1000


def line(custom_id: str = "a", **changes: Any) -> bytes:
    body = {"model": "m", "input": "text", **changes}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}).encode()


async def pieces(text: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


async def checked(*lines: bytes) -> Checked:
    return await check(pieces(b"\n".join(lines), 100), Endpoint.EMBEDDINGS, LONGEST)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line(model="m\ud800"), "half a surrogate pair"),
        (line("a\ud800"), "half a surrogate pair"),
        (line(**{"k\udfff": 1}), "half a surrogate pair"),
        (line(input=float("nan")), "NaN"),
        (line(input=[float("-inf")]), "-Infinity"),
        (line(input="N").replace(b'"N"', b"1e999"), "too large"),
        (line(input="N").replace(b'"N"', b"9" * 5000), "no JSON"),
        (line(input="N").replace(b'"N"', b"[" * 200 + b"]" * 200), "nested"),
        (line(input="N").replace(b'"N"', b"[" * 100_000 + b"]" * 100_000), "nested"),
        (b"\xff{}", "no JSON"),
        (b"[1]", "no JSON object"),
    ],
)
def test_a_line_that_cannot_be_asked_says_why(bad: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(1, bad, Endpoint.EMBEDDINGS)


async def test_each_bad_line_is_told_and_what_is_told_can_be_shown() -> None:
    found = await checked(line("a"), line("b", model="m\ud800"), line("c\0"), line("c\0"), line("d", input="x" * 2000))
    assert [(error.line, error.code) for error in found.errors] == [
        (2, "invalid_json_line"),
        (4, "duplicate_custom_id"),
        (5, "line_too_long"),
    ]
    told = found.model_dump_json()
    assert "\\u0000" not in told and told.encode()
    assert (found.total, found.model) == (2, "m")


@pytest.mark.parametrize("size", [1, 3, 7, 100, 10_000])
async def test_lines_are_the_files_however_it_is_cut(size: int) -> None:
    text = b"first\n\n  \nsecond\n" + b"x" * 2000 + b"\n\nlast"
    found = [(number, part) async for number, part in numbered(pieces(text, size), LONGEST)]
    assert found == [(1, b"first"), (4, b"second"), (5, None), (7, b"last")]


async def test_a_file_without_end_of_line_is_not_held() -> None:
    held = numbered(pieces(b"x" * 50_000_000, 1 << 16), LONGEST)
    assert [part async for part in held] == [(1, None)]


async def test_a_bom_is_none_of_the_first_line() -> None:
    assert not (await checked(b"\xef\xbb\xbf" + line())).errors
