"""The OpenAPI document: whole, and true of what every route shares. Nothing is started."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from timestep.server.app import create_app
from timestep.server.documented import EVERYWHERE
from timestep.settings import Settings

PROTOCOL = {
    ("post", ""): "createAgentTask",
    ("get", ""): "listAgentTasks",
    ("get", "/{task_id}"): "getAgentTask",
    ("get", "/{task_id}/steps"): "listAgentTaskSteps",
    ("post", "/{task_id}/steps"): "executeAgentTaskStep",
    ("get", "/{task_id}/steps/{step_id}"): "getAgentTaskStep",
    ("get", "/{task_id}/artifacts"): "listAgentTaskArtifacts",
    ("post", "/{task_id}/artifacts"): "uploadAgentTaskArtifacts",
    ("get", "/{task_id}/artifacts/{artifact_id}"): "downloadAgentTaskArtifact",
}
# Of these, the path says everything.
WITHOUT_BODY = re.compile(r"/(cancel|pause|resume)$")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_operation_says_what_it_takes_and_answers(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert operation["summary"] and operation["tags"], (method, path)
        good = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
        assert good, (method, path)
        for status, answer in good.items():
            schemas = [content["schema"] for content in answer.get("content", {}).values()]
            assert (schemas and all(schemas)) or status == "204", (method, path, status)
        assert ("requestBody" in operation) or method != "post" or WITHOUT_BODY.search(path), (method, path)


def test_operations_have_ids_of_their_own(document: dict[str, Any]) -> None:
    ids = Counter(operation["operationId"] for _, _, operation in operations(document))
    assert [name for name, times in ids.items() if times > 1] == []


def test_what_any_request_may_be_told_is_documented(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert {str(status) for status in EVERYWHERE} <= set(operation["responses"]), (method, path)
        # FastAPI's own way to say that a request can't be meant is not ours; the Agent Protocol's is.
        assert ("422" in operation["responses"]) == path.startswith("/ap/"), (method, path)
    assert "ValidationError" not in str(document["components"]["schemas"])


def test_whatever_is_referred_to_is_there(document: dict[str, Any]) -> None:
    for name in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        found = document
        for part in name.split("/"):
            found = found[part]
        assert found


def test_all_of_the_agent_protocol_is_there(document: dict[str, Any]) -> None:
    prefix = "/ap/v1/agent/tasks"
    found = {
        (method, path.removeprefix(prefix)): operation["operationId"]
        for method, path, operation in operations(document)
        if path.startswith("/ap/")
    }
    assert found == PROTOCOL
