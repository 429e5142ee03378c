"""Which part of its bytes a request asks for (RFC 9110, section 14): one range; of several, all is sent."""

import re

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


def asked_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last; None where all is asked, or what is asked can't be read.

    Where the object has none of these bytes, the two are equal.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:  # the last so many
        return max(0, size - int(last)), size
    start, end = int(first), min(int(last) + 1, size) if last else size
    if last and int(last) < int(first):
        return None
    return (start, end) if start < size else (size, size)
