"""``python -m tests.chaos [KILLS] [SEED]``: a long campaign; prints its table and fails where anything was lost."""

import asyncio
import sys

from tests.chaos.campaign import Campaign, Counts
from tests.chaos.learning import Learning
from tests.chaos.stack import running_stack


async def main(kills: int, seed: int) -> Counts:
    """Run it on a stack of its own."""
    async with running_stack() as stack:
        learnt = await Learning(stack).run()
        counts = await Campaign(stack, kills, seed).run()
        counts.learnt = learnt
        return counts


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    counts = asyncio.run(main(*(arguments + [40, 1][len(arguments) :])))
    print(counts.table(), *counts.bad, sep="\n")
    sys.exit(bool(counts.bad))
