"""``python -m tests.chaos [KILLS] [SEED]``: a long campaign; prints its table and fails where anything was lost."""

import asyncio
import sys

from tests.chaos.campaign import Campaign, Counts
from tests.chaos.learning import Learning
from tests.chaos.stack import running_stack


async def main(kills: int, seed: int) -> Counts:
    """Run it on a stack of its own."""
    async with running_stack() as stack:
        learning = Learning(stack)
        state = await learning.run()
        epochs = await learning.epochs()
        print(
            f"training: {state and state.name}, {len(epochs)} epochs, by attempts {sorted(epochs.values())}, ", end=""
        )
        print(f"{await learning.trained() - len(epochs)} of them trained twice", flush=True)
        return await Campaign(stack, kills, seed).run()


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    counts = asyncio.run(main(*(arguments + [40, 1][len(arguments) :])))
    print(counts.table(), *counts.lost, sep="\n")
    bad = counts.lost, counts.model_calls_repeated, counts.tool_calls_repeated, counts.once_run_again, counts.unfenced
    sys.exit(any(bad))
