"""Runs every comparison against a service of its own and prints one table; ratios matter, not seconds.

python -m benchmarks            all of them
python -m benchmarks decode     those named: step trigger decode training storage
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import decode, finetuning, objects, steps, trigger
from benchmarks.figure import Bench, Figure
from benchmarks.service import running_service
from timestep.errors import UsageError

COMPARISONS: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    "storage": objects.measure,
    "step": steps.measure,
    "trigger": trigger.measure,
    "decode": decode.measure,
    "training": finetuning.measure,
}


async def main(names: list[str]) -> None:
    """Measure and print."""
    unknown = set(names) - set(COMPARISONS)
    if unknown:
        raise UsageError(f"No comparison '{min(unknown)}'. There are: {', '.join(COMPARISONS)}.")
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="ts-bench-"))
    try:
        async with running_service(folder) as bench:
            figures = []
            for name in names or COMPARISONS:
                console.print(f"{name} …", style="dim")
                figures += await COMPARISONS[name](bench)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table("what", "figure", "against", "ratio", box=None, pad_edge=False)
    for figure in figures:
        table.add_row(figure.what, figure.shown, figure.against, figure.ratio)
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
