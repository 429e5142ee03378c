"""The lines of a batch's input file: requests of one endpoint, each with an id of the client's own."""

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn

from openai.types import BatchError
from pydantic import BaseModel

from timestep.models.routing import is_file
from timestep.nesting import DEEPEST, nested

MOST_REQUESTS = 50_000  # in one file, as OpenAI has it
MOST_ERRORS = 100  # told of one file
SHOWN = 200  # characters of what an error quotes, and of a model's name


class Endpoint(StrEnum):
    """What each line of a batch is a request to; ``step`` takes a step's parameters."""

    STEP = "step"
    RESPONSES = "/v1/responses"
    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


@dataclass(frozen=True)
class BatchRequest:
    """A line that makes sense; ``number`` is the file's, from 1."""

    number: int
    custom_id: str
    body: dict[str, Any]


class LineRefusedError(ValueError):
    """A line that makes none: OpenAI's code for it, and the part of the line that is meant."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message.replace("\0", "\ufffd"))  # Prefect stores no NUL, and has to tell it
        self.code, self.param = code, param and param.replace("\0", "\ufffd")


class Checked(BaseModel):
    """What a batch's file turned out to be. ``model``: the one that all lines name, if it is one."""

    total: int = 0
    errors: list[BatchError] = []
    model: str | None = None


@dataclass
class _Check:
    """What is known of the lines so far."""

    endpoint: Endpoint
    result: Checked = field(default_factory=Checked)
    seen: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)

    def line(self, number: int, text: bytes | None) -> None:
        try:
            request = parse(number, text, self.endpoint)
            if request.custom_id in self.seen:
                said = f"The custom_id '{request.custom_id[:SHOWN]}' is that of an earlier line."
                raise LineRefusedError("duplicate_custom_id", said, "custom_id")
            self.seen.add(request.custom_id)
            self.models.add(request.body["model"])
            self.result.total += 1
        except LineRefusedError as error:
            self.refuse(error.code, str(error), number, error.param)

    def refuse(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        self.result.errors.append(BatchError(code=code, message=message, line=line, param=param))


async def check(stream: AsyncIterator[bytes], endpoint: Endpoint, longest: int) -> Checked:
    """Look at every line of a file, whatever its size; the first hundred that make no sense are told.

    One of more than ``longest`` bytes makes none.
    """
    checking = _Check(endpoint)
    async for number, text in numbered(stream, longest):
        checking.line(number, text)
        if len(checking.result.errors) >= MOST_ERRORS:
            break
        if checking.result.total > MOST_REQUESTS:
            checking.refuse("too_many_requests", f"A batch takes {MOST_REQUESTS} requests at most. Make several.")
            break
    if not checking.result.total and not checking.result.errors:
        checking.refuse("empty_file", "The file holds no request.")
    if len(checking.models) == 1:
        checking.result.model = checking.models.pop()[:SHOWN]
    return checking.result


async def requests(stream: AsyncIterator[bytes], endpoint: Endpoint, longest: int) -> AsyncIterator[BatchRequest]:
    """The requests of a file that was checked."""
    async for number, text in numbered(stream, longest):
        yield parse(number, text, endpoint)


async def numbered(stream: AsyncIterator[bytes], longest: int) -> AsyncIterator[tuple[int, bytes | None]]:
    """The lines that are not blank, with their numbers in the file; None for one of more than ``longest`` bytes."""
    held, too_long, number = bytearray(), False, 1
    async for chunk in stream:
        start = 0
        while start < len(chunk):
            newline = chunk.find(b"\n", start)
            end = len(chunk) if newline < 0 else newline
            too_long = too_long or len(held) + end - start > longest
            if too_long:
                held.clear()
            else:
                held += chunk[start:end]
            if newline >= 0:
                if too_long or held.strip():
                    yield number, None if too_long else bytes(held)
                held.clear()
                too_long, number = False, number + 1
            start = end + 1
    if too_long or held.strip():
        yield number, None if too_long else bytes(held)


def parse(number: int, text: bytes | None, endpoint: Endpoint) -> BatchRequest:
    """One line; None is one that is too long. LineRefusedError says what is wrong with it."""
    if text is None:
        raise LineRefusedError("line_too_long", "The line is longer than a request's body may be.")
    try:
        line = json.loads(text.decode("utf-8-sig"), parse_constant=_no_number)
        why = _unfit(line)
    except RecursionError:
        why = f"is nested deeper than {DEEPEST} levels"
    except ValueError as error:
        raise LineRefusedError("invalid_json_line", f"The line is no JSON: {error}.") from error
    if why is not None:
        raise LineRefusedError("invalid_json_line", f"The line {why}.")
    if not isinstance(line, dict):
        raise LineRefusedError("invalid_json_line", "The line is no JSON object.")
    custom_id, body = line.get("custom_id"), line.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise LineRefusedError("missing_required_parameter", "'custom_id': a text is expected.", "custom_id")
    if line.get("method") != "POST":
        raise LineRefusedError("invalid_method", "'method': 'POST' is expected.", "method")
    if line.get("url") != endpoint:
        said = f"'url': '{endpoint}' is expected, which is the batch's endpoint."
        raise LineRefusedError("invalid_url", said, "url")
    if not isinstance(body, dict):
        raise LineRefusedError("missing_required_parameter", "'body': a JSON object is expected.", "body")
    if not isinstance(body.get("model"), str):
        raise LineRefusedError("missing_required_parameter", "'body.model': a text is expected.", "body.model")
    if is_file(body["model"]):  # the model server takes paths and URLs, and a client names models only
        raise LineRefusedError("model_not_found", f"No model '{body['model'][:SHOWN]}'.", "body.model")
    if body.get("stream"):
        raise LineRefusedError("invalid_request", "'body.stream': a batch streams nothing.", "body.stream")
    if unknown := set(line) - {"custom_id", "method", "url", "body"}:
        raise LineRefusedError("unknown_parameter", f"A line has no '{min(unknown)[:SHOWN]}'.", min(unknown)[:SHOWN])
    return BatchRequest(number, custom_id, body)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"'{name}' is no number of it")


def _unfit(line: Any) -> str | None:
    """Why the line can't be asked, or told of, though it is JSON."""
    for one, depth in nested(line):
        if depth > DEEPEST:
            return f"is nested deeper than {DEEPEST} levels"
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                return "holds half a surrogate pair"
        elif isinstance(one, float) and not math.isfinite(one):
            return "holds a number that is too large"
    return None
