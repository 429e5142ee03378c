"""A token's way through the durable run: from a model server, by worker, database and HTTP server, to who watches.

The model server says the time at which it sends each token, as the token.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from benchmarks.figure import Bench, Figure, median
from timestep import runs

TOKENS = 400
PER_SECOND = 150
PORT_FILE = "stamps.port"  # beside the agents file, which finds the model server by it


async def measure(bench: Bench) -> list[Figure]:
    """Milliseconds from sent to arrived, with one client and with ten on the same step."""
    figures = []
    async with _model_server(bench.folder), runs.connect(bench.settings.prefect_api) as client:
        for watchers in (1, 1, 10):  # the first round warms up
            run = await runs.start(client, "step/step", {"agent": "stamps", "input": "go"})
            url = f"http://127.0.0.1:{bench.settings.port}/v1/steps/{run.id}/events"
            took = await asyncio.gather(*(_watch(url) for _ in range(watchers)))
            late = sorted(1000 * seconds for one in took for seconds in one)
            figures.append(
                Figure(
                    f"token from model server to SSE client, {watchers} watching, {PER_SECOND} tokens/s",
                    f"{median(late):.0f} ms",
                    f"95 %: {late[int(0.95 * len(late))]:.0f} ms",
                )
            )
    return figures[1:]


async def _watch(url: str) -> list[float]:
    """Seconds that each token took."""
    took: list[float] = []
    async with httpx.AsyncClient(timeout=60) as client, client.stream("GET", url) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: ") and (delta := json.loads(line[6:]).get("delta")):
                took += [time.time() - float(sent) for sent in delta.split()]
    return took


@asynccontextmanager
async def _model_server(folder: Path) -> AsyncIterator[None]:
    """A server of chat completions, as far as a stream of stamps needs one."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    (folder / PORT_FILE).write_text(str(server.sockets[0].getsockname()[1]))
    try:
        yield
    finally:
        server.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length"))
    await reader.readexactly(int(length.partition(b":")[2]))
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    due = time.time()
    for _ in range(TOKENS):
        due += 1 / PER_SECOND
        await asyncio.sleep(max(0.0, due - time.time()))
        _send(writer, {"content": f"{time.time():.6f} "})
        await writer.drain()
    _send(writer, {}, "stop")
    writer.write(b"data: [DONE]\n\n")
    writer.close()


def _send(writer: asyncio.StreamWriter, delta: dict[str, str], finish: str | None = None) -> None:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "stamps", "choices": [choice]}
    writer.write(f"data: {json.dumps(chunk)}\n\n".encode())
