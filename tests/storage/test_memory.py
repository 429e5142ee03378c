"""Memory stays bounded, however large the object: 600 MB through each driver in under 200 MB."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import asyncio, json, resource, sys
from pathlib import Path
from storage.store import ObjectStore
def peak():
    # In bytes. Linux counts the parent's memory at the fork in ru_maxrss, but not in VmHWM.
    if sys.platform == "linux":
        return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
async def main(url, folder):
    store = ObjectStore.open(url)
    chunk = bytes(range(256)) * 4096
    async def stream():
        for _ in range(600):
            yield chunk
    reference = await store.put_content(stream())
    path = await store.download(reference, Path(folder) / "copy")
    size = path.stat().st_size
    path.unlink()
    streamed = 0
    async for piece in store.stream(reference):
        streamed += len(piece)
    print(json.dumps({"size": size, "streamed": streamed, "peak": peak()}))
asyncio.run(main(*sys.argv[1:]))
"""


def test_600_mb_pass_in_under_200_mb_of_memory(store_url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, store_url, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["size"] == measured["streamed"] == 600 << 20
    assert measured["peak"] < 200e6
    print(f"peak {measured['peak'] / 1e6:.0f} MB")
