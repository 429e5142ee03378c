"""A flow with a mode, as the step has it, for the division of runs among workers."""

import asyncio

from prefect import flow


@flow
async def moded(mode: str = "inference", seconds: float = 0) -> str:
    """Says its mode."""
    await asyncio.sleep(seconds)
    return mode
