"""What a person does in the Prefect UI, in a real browser: fill in the form, submit, look at the result."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.conftest import Service
from tests.ui.browser import field, select

SECONDS = 1_000


async def open_form(page: Page, service: Service) -> None:
    async with httpx.AsyncClient() as client:
        found = await client.get(f"{service.prefect_api}/deployments/name/step/step")
    deployment = found.json()["id"]
    await page.goto(f"http://127.0.0.1:{service.prefect_port}/deployments/deployment/{deployment}/run")
    await expect(field(page, "Max turns")).to_be_visible(timeout=60 * SECONDS)


async def submit(page: Page, service: Service) -> str:
    """Submit the form; returns the id of the flow run it made."""
    before = {run["id"] for run in await flow_runs(service)}
    await page.get_by_role("button", name="Submit").click()
    for _ in range(100):
        new = [run["id"] for run in await flow_runs(service) if run["id"] not in before]
        if new:
            return str(new[0])
        await page.wait_for_timeout(200)
    raise AssertionError("the form was submitted, but no flow run was created")


async def flow_runs(service: Service) -> list[dict[str, Any]]:
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{service.prefect_api}/flow_runs/filter", json={})
        found: list[dict[str, Any]] = response.json()
        return found


async def expect_completed(page: Page, service: Service, run: str, *artifacts: str) -> None:
    """The run's page says Completed in its head, and its Artifacts tab lists these."""
    url = f"http://127.0.0.1:{service.prefect_port}/runs/flow-run/{run}"
    await page.goto(url)
    # Elsewhere on the page it is the word of a task.
    await expect(page.locator(".state-badge", has_text="Completed").first).to_be_visible(timeout=240 * SECONDS)
    await page.goto(url)  # the page lists the artifacts that were there when it was opened
    await page.get_by_text("Artifacts", exact=True).first.click()
    for key in artifacts:
        await expect(page.get_by_text(re.compile(key, re.IGNORECASE)).first).to_be_visible(timeout=20 * SECONDS)


@pytest.mark.timeout(600)
async def test_form_runs_a_step_in_inference_mode(page: Page, service: Service) -> None:
    await open_form(page, service)
    await field(page, "Input").locator("textarea").fill("go")
    await field(page, "Agent").locator("textarea").fill("planner")
    await select(page, "Mode", "inference")
    run = await submit(page, service)
    await expect_completed(page, service, run, "summary", "turns", "objects")


@pytest.mark.timeout(600)
async def test_form_runs_a_step_in_training_mode(page: Page, service: Service, screenshots: Path | None) -> None:
    await open_form(page, service)
    await field(page, "Agent").locator("textarea").fill("pupil")
    await select(page, "Mode", "training")
    if screenshots:
        await page.get_by_text("Run Name").scroll_into_view_if_needed()
        await page.screenshot(path=screenshots / "form.png")
    await field(page, "Dataset").locator("textarea").fill(str(service.dataset))
    run = await submit(page, service)
    await expect_completed(page, service, run, "summary", "loss-curve", "training")
    if screenshots:
        await page.wait_for_timeout(3 * SECONDS)
        await page.screenshot(path=screenshots / "trained.png")
    await page.get_by_text("loss-curve", exact=True).first.click()
    picture = page.locator("img[src^='data:image/svg+xml']").first
    await expect(picture).to_be_visible(timeout=20 * SECONDS)
    assert await picture.evaluate("image => image.naturalWidth") > 100
    if screenshots:
        await page.wait_for_timeout(3 * SECONDS)
        await page.screenshot(path=screenshots / "loss-curve.png")


@pytest.mark.timeout(600)
async def test_form_of_a_suspended_step_takes_decisions(page: Page, service: Service, screenshots: Path | None) -> None:
    service.clear_calls()
    run = await start(service, agent="pair", input="go")
    await page.goto(f"http://127.0.0.1:{service.prefect_port}/runs/flow-run/{run}")
    await expect(page.get_by_text("Suspended").first).to_be_visible(timeout=60 * SECONDS)
    await page.get_by_role("button", name="Resume").first.click()
    dialog = page.locator(".p-modal")
    await expect(dialog.get_by_text("1 · delete")).to_be_visible(timeout=20 * SECONDS)
    await expect(dialog.get_by_text("Which colour?")).to_be_visible()
    await expect(dialog.locator("code", has_text='"x"')).to_be_visible()
    if screenshots:
        await page.wait_for_timeout(1 * SECONDS)
        await page.screenshot(path=screenshots / "approval.png")
    # A call that nobody has decided of is named, and nothing is resumed.
    await dialog.get_by_role("button", name="Submit").click()
    await expect(dialog.get_by_text("'decision' is a required property")).to_be_visible(timeout=20 * SECONDS)
    control = dialog.locator("button.p-select-button__control").first
    await control.focus()
    await page.keyboard.press("Space")
    await page.get_by_role("option", name="reject", exact=True).click()
    texts = dialog.locator("textarea")
    await texts.nth(0).fill("keep it")
    await texts.nth(1).fill("blue")
    await dialog.get_by_role("button", name="Submit").click()
    await expect(dialog).to_have_count(0, timeout=20 * SECONDS)
    # In the page's head: the log has the word of each task.
    await expect(page.locator(".state-badge", has_text="Completed").first).to_be_visible(timeout=60 * SECONDS)
    assert "tool delete x" not in service.calls
    shown = service.json("show", run)
    outputs = [call["output"] for call in shown["result"]["tool_calls"]]
    assert outputs == ["A person rejected this call: keep it", "blue"]


async def start(service: Service, **parameters: Any) -> str:
    """Start a step; returns the id of its flow run."""
    async with httpx.AsyncClient() as client:
        found = await client.get(f"{service.prefect_api}/deployments/name/step/step")
        url = f"{service.prefect_api}/deployments/{found.json()['id']}/create_flow_run"
        made = await client.post(url, json={"parameters": parameters})
        return str(made.json()["id"])
