"""The Agent Protocol, through a running service: every operation, each answer held to the protocol's shapes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from jsonschema import validate

from tests.conftest import Service
from tests.server.stage import eventually
from timestep import runs

# The protocol's schemas (v1, components/schemas), as far as they demand anything.
TEXT = {"type": ["string", "null"]}
ARTIFACT = {
    "required": ["artifact_id", "agent_created", "file_name"],
    "properties": {
        "artifact_id": {"type": "string"},
        "agent_created": {"type": "boolean"},
        "file_name": {"type": "string"},
        "relative_path": TEXT,
    },
}
ASKED = {"input": TEXT, "additional_input": {"type": "object"}, "artifacts": {"type": "array", "items": ARTIFACT}}
TASK = {"type": "object", "required": ["task_id", "artifacts"], "properties": {**ASKED, "task_id": {"type": "string"}}}
STEP = {
    "type": "object",
    "required": ["step_id", "task_id", "status", "is_last", "artifacts"],
    "properties": {
        **ASKED,
        "step_id": {"type": "string"},
        "task_id": {"type": "string"},
        "name": TEXT,
        "status": {"enum": ["created", "running", "completed"]},
        "output": TEXT,
        "additional_output": {"type": ["object", "null"]},
        "is_last": {"type": "boolean"},
    },
}
MESSAGE = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
PAGINATION = {
    "required": (names := ["total_items", "total_pages", "current_page", "page_size"]),
    "properties": {name: {"type": "integer"} for name in names},
}
TASKS, STEPS, ARTIFACTS = (
    {
        "type": "object",
        "required": [name, "pagination"],
        "properties": {name: {"type": "array", "items": one}, "pagination": PAGINATION},
    }
    for name, one in (("tasks", TASK), ("steps", STEP), ("artifacts", ARTIFACT))
)
NOBODY = "00000000-0000-0000-0000-00000000000f"


class Client:
    """Asks, and holds each answer to its shape."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self.http, self.url = http, url

    async def ask(self, method: str, path: str, shape: dict[str, Any], status: int = 200, **more: Any) -> Any:
        response = await self.http.request(method, f"{self.url}{path}", **more)
        assert response.status_code == status, response.text
        validate(response.json(), shape)
        return response.json()

    async def task(self, text: str | None = "go") -> str:
        return str((await self.ask("POST", "", TASK, json={"input": text}))["task_id"])

    async def step(self, task: str, **body: Any) -> dict[str, Any]:
        return dict(await self.ask("POST", f"/{task}/steps", STEP, json=body))


@pytest.fixture
async def client(service: Service) -> AsyncIterator[Client]:
    url = f"http://127.0.0.1:{service.port}/ap/v1/agent/tasks"
    async with httpx.AsyncClient(timeout=90) as http:
        yield Client(http, url)


async def test_a_task_is_worked_off_step_by_step(client: Client, service: Service) -> None:
    made = await client.ask("POST", "", TASK, json={"input": "go", "additional_input": {"debug": None}})
    assert (made["input"], made["additional_input"], made["artifacts"]) == ("go", {"debug": None}, [])
    task = made["task_id"]
    assert await client.ask("GET", f"/{task}", TASK) == made
    service.clear_calls()
    first = await client.ask("POST", f"/{task}/steps", STEP)  # no body: the task's input
    assert (first["status"], first["output"], first["is_last"]) == ("completed", "all done", True)
    assert (first["input"], first["additional_output"]["status"]) == ('go\n\n{"debug": null}', "succeeded")
    assert service.calls.count("tool two") == 1
    seen = httpx.get(f"{service.api}/steps/{first['step_id']}").json()  # it is the step of the other doors
    assert (seen["status"], seen["agent"], seen["output"]) == ("succeeded", "planner", "all done")
    # The agent remembers what it did: the same plan is at its end already.
    service.clear_calls()
    second = await client.step(task, input="And?", additional_input={"a": 1})
    assert (second["input"], second["additional_input"], second["output"]) == ("And?", {"a": 1}, "all done")
    assert service.calls == ["model 2"]
    listed = await client.ask("GET", f"/{task}/steps", STEPS)
    assert [step["step_id"] for step in listed["steps"]] == [first["step_id"], second["step_id"]]
    assert [step["is_last"] for step in listed["steps"]] == [False, True]
    page = await client.ask("GET", f"/{task}/steps", STEPS, params={"current_page": 2, "page_size": 1})
    assert [step["step_id"] for step in page["steps"]] == [second["step_id"]]
    assert page["pagination"] == {"total_items": 2, "total_pages": 2, "current_page": 2, "page_size": 1}
    assert await client.ask("GET", f"/{task}/steps/{second['step_id']}", STEP) == second


async def test_a_step_that_others_run_before_is_waited_for(client: Client) -> None:
    task = await client.task()
    first, polled = await asyncio.gather(client.step(task), client.step(task))
    assert first == polled  # without an input, the step that runs is what is asked for
    two = await asyncio.gather(client.step(task, input="one"), client.step(task, input="two"))
    assert {step["status"] for step in two} == {"completed"}
    listed = await client.ask("GET", f"/{task}/steps", STEPS)
    assert listed["pagination"]["total_items"] == 3


async def test_a_cancelled_step_is_done_again(client: Client, service: Service) -> None:
    task = await client.task("once more")
    # Another step of the same session, which waits for a person: what comes behind it has to wait as well.
    body = {"input": "go", "agent": "cleaner", "session_id": task}
    ahead = await client.http.post(f"{service.api}/steps", json=body)

    async def waits() -> bool:
        return bool((await client.http.get(f"{service.api}/steps/{ahead.json()['id']}")).json()["pending"])

    async def queued() -> bool:
        return bool((await client.ask("GET", f"/{task}/steps", STEPS))["steps"])

    await eventually(waits, 60)
    asking = asyncio.create_task(client.step(task))
    await eventually(queued, 60)
    (step,) = (await client.ask("GET", f"/{task}/steps", STEPS))["steps"]
    assert (step["status"] in ("created", "running"), step["output"], step["is_last"]) == (True, None, False)
    for one in (step["step_id"], ahead.json()["id"]):
        assert (await client.http.post(f"{service.api}/steps/{one}/cancel")).status_code == 200
    ended = await asking
    assert (ended["status"], ended["is_last"]) == ("completed", True)
    assert ended["additional_output"]["status"] == "cancelled"
    again = await client.step(task)
    assert (again["input"], again["output"]) == ("once more", "all done")


async def test_a_run_that_a_killed_server_made_and_did_not_note_is_found_again(
    client: Client, service: Service
) -> None:
    task = await client.task("go")

    async def unnoted(number: int, text: str) -> str:
        parameters = {"input": text, "agent": "planner", "session_id": task}
        async with runs.connect(service.prefect_api) as prefect:
            run = await runs.start(prefect, "step/step", parameters, idempotency_key=f"{task}-{number}")
        return str(run.id)

    first = await unnoted(0, "go")
    assert (await client.step(task))["step_id"] == first  # what was asked for is asked for again
    second = await unnoted(1, "one")
    third = await client.step(task)
    listed = (await client.ask("GET", f"/{task}/steps", STEPS))["steps"]
    assert [step["step_id"] for step in listed] == [first, second, third["step_id"]]
    assert [step["input"] for step in listed] == ["go", "one", "Go on with the task."]


async def test_artifacts_go_up_and_down(client: Client) -> None:
    task, data = await client.task(), bytes(range(256)) * 9000
    upload = {"file": ("../../ünï.bin", data, "application/octet-stream")}
    made = await client.ask(
        "POST", f"/{task}/artifacts", ARTIFACT, files=upload, data={"relative_path": "python/code/"}
    )
    assert (made["file_name"], made["relative_path"], made["agent_created"]) == ("ünï.bin", "python/code/", False)
    got = await client.http.get(f"{client.url}/{task}/artifacts/{made['artifact_id']}")
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["content-type"] == "application/octet-stream"
    assert "attachment" in got.headers["content-disposition"]
    listed = await client.ask("GET", f"/{task}/artifacts", ARTIFACTS)
    assert listed["artifacts"] == [made]
    assert (await client.ask("GET", f"/{task}", TASK))["artifacts"] == [made]
    other = await client.ask("POST", f"/{task}/artifacts", ARTIFACT, files={"file": ("b", b"b")})
    page = await client.ask("GET", f"/{task}/artifacts", ARTIFACTS, params={"current_page": 2, "page_size": 1})
    assert (page["artifacts"], page["pagination"]["total_items"]) == ([other], 2)
    elsewhere = await client.task()
    await client.ask("GET", f"/{elsewhere}/artifacts/{made['artifact_id']}", MESSAGE, 404)
    for path in ("../up", "/etc/passwd", "a/../../b", "c:\\x", "..\\x"):
        body = {"relative_path": path}
        await client.ask("POST", f"/{task}/artifacts", MESSAGE, 422, files=upload, data=body)


async def test_tasks_are_listed_in_pages(client: Client) -> None:
    made = [await client.task(f"task {number}") for number in range(3)]
    total = (await client.ask("GET", "", TASKS))["pagination"]["total_items"]
    last = await client.ask("GET", "", TASKS, params={"page_size": 1, "current_page": total})
    assert [task["task_id"] for task in last["tasks"]] == made[-1:]
    assert last["pagination"] == {
        "total_items": total,
        "total_pages": total,
        "current_page": total,
        "page_size": 1,
    }
    behind = await client.ask("GET", "", TASKS, params={"current_page": 2**31 - 1, "page_size": 1000})
    assert behind["tasks"] == []


@pytest.mark.parametrize("unknown", [NOBODY, "nonsense", "%00"])
async def test_what_is_not_there_is_named(client: Client, unknown: str) -> None:
    for path in ("", "/steps", f"/steps/{NOBODY}", "/artifacts", f"/artifacts/{NOBODY}"):
        said = await client.ask("GET", f"/{unknown}{path}", MESSAGE, 404)
        assert said["error"]["code"] == "task_not_found"
    await client.ask("POST", f"/{unknown}/steps", MESSAGE, 404)
    await client.ask("POST", f"/{unknown}/artifacts", MESSAGE, 404, files={"file": ("a", b"a")})
    task = await client.task()
    await client.ask("GET", f"/{task}/steps/{unknown}", MESSAGE, 404)


async def test_what_can_not_be_meant_is_said(client: Client) -> None:
    for bad in ({"input": 1}, {"additional_input": []}, [], "text"):
        await client.ask("POST", "", MESSAGE, 422, json=bad)
    await client.ask("POST", "", MESSAGE, 422, content=b"{", headers={"content-type": "application/json"})
    for page in ({"current_page": 0}, {"page_size": 0}, {"current_page": 2**31}, {"page_size": "many"}):
        await client.ask("GET", "", MESSAGE, 422, params=page)
    task = await client.task(None)
    said = await client.ask("POST", f"/{task}/steps", MESSAGE, 422)
    assert "'input'" in said["message"]
    await client.ask("POST", f"/{task}/steps", MESSAGE, 422, json={"input": "a\0b"})
    await client.ask("POST", f"/{task}/artifacts", MESSAGE, 422, data={"relative_path": "x"})
    assert (await client.ask("GET", f"/{task}/steps", STEPS))["steps"] == []
