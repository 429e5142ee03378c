"""Batches: each line a top-level step, results in input order, a bad line fails alone."""

import asyncio
import json
from pathlib import Path
from typing import Any

from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from tests.conftest import Service
from timestep import runs


def test_batch_keeps_order_and_fails_bad_lines_alone(service: Service, tmp_path: Path) -> None:
    lines = [
        json.dumps({"input": "go", "agent": "planner"}),
        "{not json",
        json.dumps({"input": "go", "agent": "nobody"}),
        json.dumps({"input": "go", "agnt": "planner"}),
        json.dumps({"input": "go", "agent": "clumsy"}),
        json.dumps({"input": "go", "agent": "planner", "max_turns": 0}),
    ]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    done = service.run("batch", str(source), "--out", str(out), "--concurrency", "2")
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["line"] for r in results] == [1, 2, 3, 4, 5, 6]
    assert [r["status"] for r in results] == ["completed", "failed", "failed", "failed", "completed", "failed"]
    assert results[0]["output"]["output"] == "all done"
    assert "line 2" in results[1]["error"]
    assert "No agent 'nobody'" in results[2]["error"]
    assert "no step parameter 'agnt'" in results[3]["error"]
    assert results[4]["output"]["output"] == "it failed"
    assert "max_turns" in results[5]["error"]
    assert "2 of 6 completed, 4 failed" in done.stderr
    assert asyncio.run(progress(service)) == (100.0, "6 of 6 lines, 4 failed")


async def progress(service: Service) -> tuple[Any, str | None]:
    """What the Prefect UI shows of the last batch."""
    async with runs.connect(service.prefect_api) as prefect:
        chosen = ArtifactFilter(key=ArtifactFilterKey(any_=["progress"]))
        shown = await prefect.read_artifacts(artifact_filter=chosen, sort=ArtifactSort.CREATED_DESC, limit=1)
    return shown[0].data, shown[0].description


def test_batch_of_plain_texts(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"input": "go", "agent": "receiver"}\n\n{"input": "go", "agent": "receiver"}\n')
    results = [json.loads(line) for line in service.run("batch", str(source)).stdout.splitlines()]
    assert [r["output"]["output"] for r in results] == ["received", "received"]


def test_empty_batch_is_refused(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "empty.jsonl"
    source.write_text("\n\n")
    done = service.run("batch", str(source), check=False)
    assert done.returncode == 1
    assert "it is empty" in done.stderr


def test_absent_file_is_one_line(service: Service) -> None:
    done = service.run("batch", "nowhere.jsonl", check=False)
    assert done.returncode == 1
    assert done.stderr == "timestep: No file 'nowhere.jsonl'.\n"
