"""How a program of ours ends: what its user did wrong, or what is away, is one line and no traceback."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

from timestep.errors import TimestepError


def exit_code(work: Coroutine[Any, Any, object]) -> int:
    """Do the work: 0, or 1 with the line that says why not."""
    try:
        asyncio.run(work)
    except TimestepError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0
