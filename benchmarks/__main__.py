"""Runs every comparison against a service of its own and prints one table; ratios matter, seconds are this machine's.

python -m benchmarks            all of them
python -m benchmarks decode     those named: storage step trigger live decode training
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks import decode, finetuning, live, objects, steps, trigger
from benchmarks.figure import Bench, Figure
from benchmarks.service import running_service
from timestep.errors import UsageError

COMPARISONS: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    "storage": objects.measure,
    "step": steps.measure,
    "trigger": trigger.measure,
    "live": live.measure,
    "decode": decode.measure,
    "training": finetuning.measure,
}


async def main(names: list[str]) -> None:
    """Measure and print a Markdown table."""
    unknown = set(names) - set(COMPARISONS)
    if unknown:
        raise UsageError(f"No comparison '{min(unknown)}'. There are: {', '.join(COMPARISONS)}.")
    folder = Path(tempfile.mkdtemp(prefix="ts-bench-"))
    figures: list[Figure] = []
    try:
        async with running_service(folder) as bench:
            for name in names or COMPARISONS:
                print(f"{name} …", file=sys.stderr, flush=True)
                figures += await COMPARISONS[name](bench)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("| what | figure | beside | ratio |")
    print("|---|---|---|---|")
    for figure in figures:
        print(f"| {figure.what} | {figure.shown} | {figure.against} | {figure.ratio} |")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
