"""Storage put and verified get of 500 MB against ``cp``, and ``cp`` followed by ``sha256sum``."""

import os
import subprocess
import time

from benchmarks.figure import Bench, Figure, median, spread
from storage.store import ObjectStore

ROUNDS = 5
MEGABYTES = 500


async def measure(bench: Bench) -> list[Figure]:
    """Megabytes per second on the local driver."""
    store = ObjectStore.open(f"local://{bench.folder}/objects")
    source, target = bench.folder / "source", bench.folder / "target"
    with source.open("wb") as file:
        for _ in range(MEGABYTES):
            file.write(os.urandom(1 << 20))
    timings: dict[str, list[float]] = {"put": [], "get": [], "cp": [], "cp + sha256sum": []}
    for number in range(ROUNDS):
        started = time.perf_counter()
        subprocess.run(["cp", source, target], check=True)
        copied = time.perf_counter() - started
        subprocess.run(["sha256sum", target], check=True, stdout=subprocess.DEVNULL)
        timings["cp"].append(MEGABYTES / copied)
        timings["cp + sha256sum"].append(MEGABYTES / (time.perf_counter() - started))
        target.unlink()
        started = time.perf_counter()
        reference = await store.put(f"object-{number}", source)
        timings["put"].append(MEGABYTES / (time.perf_counter() - started))
        started = time.perf_counter()
        await store.download(reference, target)
        timings["get"].append(MEGABYTES / (time.perf_counter() - started))
        target.unlink()
        await store.delete(reference.key)
    source.unlink()
    rows = []
    for ours, theirs in (("get", "cp + sha256sum"), ("put", "cp + sha256sum"), ("put", "cp")):
        rows.append(
            Figure(
                f"storage {ours} of {MEGABYTES} MB, hashed{' and verified' if ours == 'get' else ', synced to disk'}",
                spread(timings[ours], "MB/s"),
                f"{theirs} {spread(timings[theirs], 'MB/s')}",
                f"{median(timings[ours]) / median(timings[theirs]):.2f}",
            )
        )
    return rows
