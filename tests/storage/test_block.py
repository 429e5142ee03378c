"""Prefect keeps its results in our store, through the block, on a real Prefect server."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    """A Prefect server of its own, on a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


async def keys(url: str) -> list[str]:
    from storage.store import ObjectStore

    return [found.key async for found in ObjectStore.open(url).list()]


@pytest.mark.usefixtures("prefect_server")
async def test_results_of_flows_and_tasks_lie_in_the_store(store_url: str) -> None:
    from prefect import flow, task

    from storage.block import save_default
    from timestep.settings import Settings

    name = await save_default(Settings(storage_url=store_url))
    assert name == await save_default(Settings(storage_url=store_url)) == "timestep-storage/default"
    calls = []

    @task(persist_result=True, cache_key_fn=lambda *_: "the-unit", result_storage=name)
    async def unit() -> dict[str, int]:
        calls.append(1)
        return {"answer": 391}

    @flow(persist_result=True, result_storage=name, log_prints=False)
    async def step() -> dict[str, int]:
        return await unit()

    assert await step() == {"answer": 391}
    assert await step() == {"answer": 391}
    assert len(calls) == 1
    found = await keys(store_url)
    assert "results/the-unit" in found
    assert all(key.startswith("results/") for key in found)


@pytest.mark.usefixtures("prefect_server")
def test_a_synchronous_flow(local_url: str) -> None:
    from prefect import flow, task

    from storage.block import save_default
    from timestep.settings import Settings

    name = asyncio.run(save_default(Settings(storage_url=local_url)))
    calls = []

    @task(persist_result=True, cache_key_fn=lambda *_: "sync-unit", result_storage=name)
    def unit() -> int:
        calls.append(1)
        return 7

    @flow(persist_result=True, result_storage=name)
    def step() -> int:
        return unit()

    assert (step(), step()) == (7, 7)
    assert len(calls) == 1
    assert "results/sync-unit" in asyncio.run(keys(local_url))


READER = """
import asyncio
from uuid import UUID
import sys
import storage.block
from prefect import get_client
async def main():
    async with get_client() as client:
        run = await client.read_flow_run(UUID(sys.argv[1]))
    print(await run.state.result())
asyncio.run(main())
"""


@pytest.mark.usefixtures("prefect_server")
async def test_another_process_reads_a_result(s3_url: str, tmp_path: Path) -> None:
    from prefect import flow
    from prefect.settings import PREFECT_API_URL

    from storage.block import save_default
    from timestep.settings import Settings

    name = await save_default(Settings(storage_url=s3_url))

    @flow(persist_result=True, result_storage=name)
    async def step() -> str:
        return "from far away"

    state = await step(return_state=True)
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", READER, str(state.state_details.flow_run_id)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "from far away", done.stderr


@pytest.mark.usefixtures("prefect_server")
async def test_credentials_are_not_shown(s3_url: str) -> None:
    from prefect import get_client

    from storage.block import StorageBlock, save_default
    from timestep.settings import Settings

    await save_default(Settings(storage_url=s3_url))
    async with get_client() as client:
        shown = await client.read_block_document_by_name("default", "timestep-storage", include_secrets=False)
    assert "sec" not in str(shown.data)
    block = await StorageBlock.aload("default")
    assert block.url.get_secret_value() == s3_url


async def test_a_missing_result_is_a_value_error_as_prefect_expects(local_url: str) -> None:
    from storage.block import StorageBlock

    block = StorageBlock(url=local_url)
    await block.write_path("a", b"1")
    assert await block.read_path("a") == b"1"
    with pytest.raises(ValueError, match="No object 'results/b'"):
        await block.aread_path("b")
