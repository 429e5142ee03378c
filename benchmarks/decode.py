"""Decoding through our HTTP server against llama.cpp's own ``llama-bench`` on the same file."""

import asyncio
import json
import time

import httpx

from benchmarks.figure import Bench, Figure, median, spread
from timestep.models.files import local_file
from training.toolchain import ensure_toolchain

ROUNDS = 5
TOKENS = 128


async def measure(bench: Bench) -> list[Figure]:
    """Tokens per second, the two in turn, so that a machine that gets slower does so for both."""
    tools = await ensure_toolchain(bench.settings, print)
    model = await local_file(bench.settings.model, bench.settings, None)
    assert tools.bench is not None
    command = [tools.bench, "-m", model, "-p", "0", "-n", str(TOKENS), "-r", "1", "-o", "json"]
    command += ["-t", str(bench.settings.cores)]
    served, bare = [await _through_http(bench)][:0], []
    for _ in range(ROUNDS):
        process = await asyncio.create_subprocess_exec(*map(str, command), stdout=-1, stderr=-3)
        out, _ = await process.communicate()
        bare.append(float(json.loads(out)[0]["avg_ts"]))
        served.append(await _through_http(bench))
    return [
        Figure(
            "decode through the HTTP server, streamed",
            spread(served, "tokens/s"),
            f"llama-bench {spread(bare, 'tokens/s')}",
            f"{median(served) / median(bare):.2f}",
        )
    ]


async def _through_http(bench: Bench) -> float:
    body = {
        "model": f"local/{bench.settings.model}",
        "messages": [{"role": "user", "content": "Tell a long story about a river."}],
        "max_tokens": TOKENS,
        "temperature": 1.0,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    url = f"http://127.0.0.1:{bench.settings.port}/v1/chat/completions"
    first = last = 0.0
    tokens = 0
    async with httpx.AsyncClient(timeout=120) as client, client.stream("POST", url, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            elif chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                last = time.perf_counter()
                first = first or last
    # The first token is the prompt's: what remains was decoded between the first and the last.
    return (tokens - 1) / (last - first)
