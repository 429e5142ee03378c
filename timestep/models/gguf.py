"""The header of a GGUF file: metadata and where its tensors lie. Knows no weights and loads no llama.cpp.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from timestep.errors import ModelFileError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFHeader:
    """``metadata`` by key (arrays as lists), and ``size``: the bytes a whole file has at least."""

    metadata: dict[str, Any]
    size: int

    @classmethod
    def read(cls, path: Path) -> "GGUFHeader":
        """Read the header alone. ModelFileError: no such file, no GGUF, or cut within the header."""
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if data[:4] != b"GGUF":
                    raise ModelFileError(path, "it is no GGUF file. Name a model in llama.cpp's format (*.gguf)")
                return _Reader(data).header()
        except FileNotFoundError:
            raise ModelFileError(path, "no such file") from None
        except (struct.error, IndexError, KeyError, UnicodeDecodeError, OverflowError):
            raise ModelFileError(path, "its header is damaged or cut off. Fetch the file again") from None
        except (OSError, ValueError) as error:  # an empty file can't be mapped
            raise ModelFileError(path, f"it can't be read: {error}") from None


class _Reader:
    """A cursor over the mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4

    def header(self) -> GGUFHeader:
        version = self._take("I")
        if version not in (2, 3):
            raise KeyError(version)
        tensors, entries = self._take("Q"), self._take("Q")
        metadata = {self._string(): self._value(self._take("I")) for _ in range(entries)}
        ends = [self._tensor_end() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-self._at // alignment) * alignment
        return GGUFHeader(metadata, start + max(ends, default=0))

    def _take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        length = self._take("Q")
        text = self._data[self._at : self._at + length]
        if len(text) < length:
            raise IndexError(length)
        self._at += length
        return text.decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(_SCALARS[kind])
        kind, length = self._take("I"), self._take("Q")
        if kind in _SCALARS:
            values = struct.unpack_from(f"<{length}{_SCALARS[kind]}", self._data, self._at)
            self._at += struct.calcsize(f"<{length}{_SCALARS[kind]}")
            return list(values)
        return [self._value(kind) for _ in range(length)]

    def _tensor_end(self) -> int:
        """Offset of the tensor's end within the data section; its size follows from its type and shape."""
        self._string()
        elements = 1
        for _ in range(self._take("I")):
            elements *= self._take("Q")
        block, size = GGML_QUANT_SIZES.get(GGMLQuantizationType(self._take("I")), (1, 0))
        return int(self._take("Q")) + elements // block * size
