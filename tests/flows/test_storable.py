"""What Prefect's database can't hold, on a real Prefect server: refused at the door, or told in other characters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from flows.support import publish, storable
from storage.store import ObjectStore
from tests.server.stage import staged
from timestep import runs
from timestep.agents.types import Mode, StepOutput
from timestep.errors import NotFoundError, TimestepError, UsageError


@pytest.fixture(scope="module")
def prefect(postgres_url: str) -> Iterator[None]:
    with (
        staged(postgres_url, "prefect") as stage,
        temporary_settings({PREFECT_API_URL: stage.prefect_api, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}),
    ):
        yield


@pytest.mark.parametrize("bad", ["a\0b", "half \ud83d", [{"role": "user", "content": "\0"}], {"k\0": 1}])
async def test_a_start_with_what_cannot_be_stored_is_refused_by_the_parameters_name(bad: Any) -> None:
    async with PrefectClient(api="http://127.0.0.1:9/api") as client:  # it is never asked
        with pytest.raises(UsageError, match=r"Parameter 'input' holds a NUL"):
            await runs.start(client, "step/step", {"agent": "a", "input": bad})


async def test_words_with_nul_are_a_step_that_failed(prefect: None) -> None:
    @flow
    async def failing() -> None:
        raise storable(ValueError("a\0b"))

    state: State[Any] = await failing(return_state=True)
    async with get_client() as client:
        run = await client.read_flow_run(state.state_details.flow_run_id)  # type: ignore[arg-type]
    assert run.state is not None and run.state.is_failed()
    assert "ValueError: a\ufffdb" in (run.state.message or "")


def test_an_error_keeps_its_kind_where_it_can() -> None:
    fine = NotFoundError("agent", "nobody")
    assert storable(fine) is fine
    bad = NotFoundError("agent", "no\0body")
    assert storable(bad) is bad and "\0" not in str(bad)
    missing = KeyError("k")
    assert storable(missing) is missing

    class OwnError(Exception):
        def __str__(self) -> str:
            return "own\0"

    told = storable(OwnError())
    assert type(told) is TimestepError and str(told) == "own\ufffd" and told.__suppress_context__


async def test_artifacts_take_any_output(prefect: None, tmp_path: Path) -> None:
    output = StepOutput(step_id="s", mode=Mode.INFERENCE, agent="a")
    await publish(
        ObjectStore.open(f"local://{tmp_path}"), output, summary="a\0b", turns=[{"name": "t\0", "kind": "half \ud83d"}]
    )
    async with get_client() as client:
        found = {artifact.key: artifact.data for artifact in await client.read_artifacts()}
    assert found["summary"] == "a\ufffdb" and "ufffd" in str(found["turns"])
