"""The page at / and the API's documents at /docs, in a real browser that reaches this machine alone."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.conftest import Service, free_port
from tests.server.guarded import Guarded
from timestep.database.engine import Database
from timestep.keys import Scope

SECONDS = 1_000
ANSWER = 120 * SECONDS


async def ask(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")


def watch(page: Page) -> list[str]:
    """What went wrong in the page, or was asked of another machine."""
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(request.url))
    page.on("console", lambda said: troubles.append(said.text) if "Content Security Policy" in said.text else None)
    return troubles


@pytest.mark.timeout(300)
async def test_what_is_running_is_shown_and_the_chat_streams(
    page: Page, service: Service, screenshots: Path | None
) -> None:
    troubles = watch(page)
    async with httpx.AsyncClient(base_url=service.api, timeout=60) as http:
        step = (await http.post("/steps", json={"agent": "pair", "input": "go", "session_id": "painting"})).json()["id"]
        await page.goto(f"http://127.0.0.1:{service.port}/")
        row = page.locator("tr", has=page.locator(f"a[href$='{step}']"))
        await expect(row).to_contain_text("waits for approval", timeout=60 * SECONDS)
        await expect(row).to_contain_text('delete({"path": "x"})')
        assert await row.locator("a").get_attribute("href") == (
            f"http://127.0.0.1:{service.prefect_port}/runs/flow-run/{step}"
        )
        await page.get_by_label("Model").select_option("smollm2-135m-instruct")
        await page.evaluate(
            "new MutationObserver(() => (window.grew = (window.grew ?? 0) + 1))"
            ".observe(document.getElementById('log'), { subtree: true, childList: true, characterData: true })"
        )
        await ask(page, "What is an ocean? Answer in one sentence.")
        await expect(page.locator("#stop")).to_be_hidden(timeout=ANSWER)
        answer = page.locator("#log p").nth(1)
        await expect(answer).to_have_text(re.compile(r"\w+"))
        assert await page.evaluate("window.grew") > 4  # it came in pieces
        if screenshots:
            await page.screenshot(path=screenshots / "page.png")
        await http.post(f"/steps/{step}/cancel")
        await expect(row).to_contain_text("cancelled", timeout=60 * SECONDS)
    assert troubles == []


@pytest.mark.timeout(120)
async def test_the_documents_need_nothing_from_elsewhere(page: Page, service: Service) -> None:
    troubles = watch(page)
    await page.goto(f"http://127.0.0.1:{service.port}/docs")
    await expect(page.locator(".opblock").first).to_be_visible(timeout=60 * SECONDS)
    for path in ("/v1/chat/completions", "/v1/steps", "/ap/v1/agent/tasks/{task_id}/steps"):
        shown = page.locator(".opblock-summary-path", has_text=re.compile(f"^.?{re.escape(path)}.?$"))
        await expect(shown.first).to_be_attached()
    await page.locator("#operations-steps-createStep").click()
    await expect(page.locator("#operations-steps-createStep")).to_contain_text("session_id", timeout=20 * SECONDS)
    assert troubles == []


@pytest.fixture(scope="module")
def guarded(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server before a scripted model, without a Prefect server."""
    models = Guarded(tmp_path_factory.mktemp("models") / "log", {"MODEL": "scripted"})
    models.start("timestep.models.server")
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    settings = {"DATABASE_URL": postgres_url, "PREFECT_API_URL": nowhere, "MODEL_SERVER_URL": models.url}
    server = Guarded(tmp_path_factory.mktemp("server") / "log", settings)
    server.start()
    yield server
    server.end()
    models.end()


@pytest.mark.timeout(180)
async def test_the_page_asks_for_a_key_where_there_are_keys(page: Page, guarded: Guarded, database: Database) -> None:
    key = await guarded.key(database, Scope.INFERENCE)
    await page.goto(guarded.url)
    field = page.get_by_label("This service wants an API key.")
    await expect(field).to_be_visible(timeout=20 * SECONDS)
    await expect(page.locator("#inside")).to_be_hidden()
    await field.fill("ts-wrong")
    await page.get_by_role("button", name="Use it").click()
    await expect(page.get_by_role("alert")).to_contain_text("unknown", timeout=20 * SECONDS)
    await field.fill(key)
    await page.get_by_role("button", name="Use it").click()
    # Nobody knows of any work without Prefect's server, which the page says; the chat goes on without it.
    await expect(page.get_by_role("alert")).to_contain_text("No Prefect server answers", timeout=20 * SECONDS)
    await expect(field).to_be_hidden()
    await ask(page, "Say <b>hello</b>.")
    await expect(page.locator("#log .user")).to_have_text("Say <b>hello</b>.")
    await expect(page.locator("#log p").nth(1)).to_have_text(re.compile(r"\w+"), timeout=ANSWER)
    assert await page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    await page.reload()  # the tab still has the key
    await expect(page.get_by_label("Message")).to_be_visible(timeout=20 * SECONDS)
    await page.get_by_role("button", name="Forget the key").click()
    await expect(field).to_be_visible()


def test_only_the_pages_own_files_are_served(guarded: Guarded) -> None:
    assert guarded.ask("GET", "/static/page.js").status_code == 200
    for path in (
        "/static/page.html",
        "/static/..%2fpage.py",
        "/static/%2e%2e/page.py",
        "/static//etc/passwd",
        "/static",
    ):
        assert guarded.ask("GET", path).status_code == 404
    policy = guarded.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
