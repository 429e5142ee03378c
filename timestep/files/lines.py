"""Whether a file looks like JSON Lines: said when it comes, rather than by the job that would read it."""

import json
from pathlib import Path

from storage.source import Source
from timestep.errors import ParameterError

# Read by their jobs line by line.
PURPOSES = frozenset({"batch", "fine-tune"})
# A first line longer than this is left to the job.
LONGEST = 4 << 20


def check_lines(source: Source, purpose: str, param: str = "file") -> None:
    """Reads the first line that isn't empty; blocking. ParameterError: it is no JSON object, or there is none."""
    if purpose not in PURPOSES:
        return
    line = _first(source)
    if len(line) > LONGEST:
        return
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # RecursionError: nested without end
        value = None
    if not isinstance(value, dict):
        what = "its first line is none" if line else "it is empty"
        raise ParameterError(param, f"of the purpose '{purpose}' is JSON Lines, one object a line: {what}.")


def _first(source: Source) -> bytes:
    if isinstance(source.data, Path):
        with source.data.open("rb") as file:
            while (line := file.readline(LONGEST + 1)) and not line.strip():
                pass
            return line.strip()
    return next((line.strip() for line in source.data.splitlines() if line.strip()), b"")
