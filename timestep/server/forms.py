"""Forms that carry a file (multipart/form-data, RFC 7578), read as they come: the file goes to a disk, at any length.

Its fields are known only at the end, since clients send them before the file or behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from timestep.errors import NotSupportedError, ParameterError, UsageError

if TYPE_CHECKING:
    from storage.source import Source
    from storage.store import ObjectStore

# Of all fields together, in bytes; and how many there may be.
FIELDS_SIZE, FIELDS = 64 << 10, 32
UNNAMED = "upload"
LONGEST_BOUNDARY = 70  # RFC 2046, section 5.1.1


@dataclass(frozen=True)
class Form:
    """A form's file, on a disk or in memory, and its fields."""

    file: Source
    filename: str
    fields: dict[str, str]

    def refuse_fields(self) -> None:
        """NotSupportedError: it has a field beside the file."""
        for name in self.fields:
            raise NotSupportedError(name[:100])


@asynccontextmanager
async def read_form(request: Request, store: ObjectStore, carrier: str, most: int | None = None) -> AsyncIterator[Form]:
    """The request's form, whose field ``carrier`` is the file. The file is gone at the end unless it was stored.

    Raises:
        UsageError: this is no form, it is cut, has a file elsewhere or none, or one of more than ``most`` bytes.
    """
    parts = _Parts(_boundary(request), carrier, most)
    async with store.spool(_pieces(request, parts)) as file:
        if parts.filename is None:
            raise ParameterError(carrier, "is missing. Send the file in this field of the form.")
        fields = {name: _decoded(name, value) for name, value in parts.fields.items()}
        yield Form(file, parts.filename or UNNAMED, fields)


async def _pieces(request: Request, parts: _Parts) -> AsyncIterator[bytes]:
    """The file's bytes, as the request brings them."""
    try:
        async for chunk in request.stream():
            parts.parser.write(chunk)
            for piece in parts.take():
                yield piece
        parts.parser.finalize()
    except FormParserError as error:
        raise UsageError(f"The body is no form: {error}") from error
    except ClientDisconnect:
        raise UsageError("The client left before all of its form had come.") from None
    if not parts.ended:
        raise UsageError("The body is cut: the boundary that ends a form never came.")


class _Parts:
    """What the parser has found so far."""

    def __init__(self, boundary: bytes, carrier: str, most: int | None) -> None:
        names = ("part_begin", "part_data", "header_field", "header_value", "header_end", "headers_finished", "end")
        self.parser = MultipartParser(boundary, {f"on_{name}": getattr(self, f"_{name}") for name in names})  # type: ignore[arg-type]
        self.fields: dict[str, bytearray] = {}
        self.filename: str | None = None
        self.ended = False
        self._carrier, self._most, self._size = carrier, most, 0
        self._came: list[bytes] = []
        self._field: bytearray | None = None  # None: what comes is the file
        self._left = FIELDS_SIZE
        self._header, self._value, self._disposition = b"", b"", b""

    def take(self) -> list[bytes]:
        """The file's bytes since it was last asked."""
        came, self._came = self._came, []
        return came

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if name in self.fields or (name == self._carrier and self.filename is not None):
            raise ParameterError(name[:100], "is given twice.")
        if name == self._carrier:
            self._field, self.filename = None, options.get(b"filename", b"").decode(errors="replace")
        elif b"filename" in options:
            raise NotSupportedError(name[:100], f"is a file. Only '{self._carrier}' may be one.")
        elif len(self.fields) == FIELDS:
            raise UsageError(f"The form has more than {FIELDS} fields.")
        else:
            self._field = self.fields[name] = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._size += end - start
            if self._most is not None and self._size > self._most:
                raise ParameterError(self._carrier, f"has more than the {self._most} bytes of the whole upload.")
            self._came.append(data[start:end])
            return
        self._left -= end - start
        if self._left < 0:
            raise UsageError(f"The form's fields are longer than {FIELDS_SIZE} bytes, its file apart.")
        self._field += data[start:end]

    def _end(self) -> None:
        self.ended = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not 0 < len(options.get(b"boundary", b"")) <= LONGEST_BOUNDARY:
        raise UsageError("The body is no form. Send it as multipart/form-data, as OpenAI's clients do.")
    return options[b"boundary"]


def _decoded(name: str, value: bytearray) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ParameterError(name[:100], "is no UTF-8.") from None
