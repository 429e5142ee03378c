"""What a person does in the Prefect UI, in a real browser: fill in the form, submit, look at the result."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from tests.conftest import ROOT, Service

SECONDS = 1_000


def screenshots() -> Path | None:
    """Where screenshots go: into docs/ where that's writable and asked for by its presence."""
    return ROOT / "docs" if (ROOT / "docs").is_dir() else None


async def open_form(page: Page, service: Service) -> None:
    async with httpx.AsyncClient() as client:
        found = await client.get(f"{service.prefect_api}/deployments/name/step/step")
    deployment = found.json()["id"]
    await page.goto(f"http://127.0.0.1:{service.prefect_port}/deployments/deployment/{deployment}/run")
    await expect(page.get_by_text("Max turns").first).to_be_visible(timeout=60 * SECONDS)


def group(page: Page, title: str) -> Locator:
    """The form's field with this title."""
    return page.locator(".schema-form-property").filter(has=page.get_by_text(title, exact=False)).last


async def choose(page: Page, current: str, wanted: str) -> None:
    """Open the select that shows ``current`` and pick ``wanted``."""
    await page.locator(".p-select-button").filter(has_text=current).first.click()
    await page.locator(".p-select-option").filter(has_text=re.compile(f"^{wanted}$")).first.click()


async def submit(page: Page, service: Service) -> str:
    """Submit the form; returns the flow run's id."""
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
        response = await client.post(f"{service.prefect_api}/flow_runs/filter", json={"sort": "START_TIME_DESC"})
        found: list[dict[str, Any]] = response.json()
        return found


@pytest.mark.timeout(600)
async def test_form_runs_a_step_in_inference_mode(page: Page, service: Service) -> None:
    await open_form(page, service)
    await page.locator("textarea").first.fill("go")
    await page.locator("textarea").nth(1).fill("planner")
    await choose(page, "inference", "inference")
    run = await submit(page, service)
    await page.goto(f"http://127.0.0.1:{service.prefect_port}/runs/flow-run/{run}")
    await expect(page.get_by_text("Completed").first).to_be_visible(timeout=120 * SECONDS)
    await page.get_by_role("tab", name="Artifacts").click()
    for key in ("summary", "turns", "objects"):
        await expect(page.get_by_text(key, exact=True).first).to_be_visible(timeout=20 * SECONDS)


@pytest.mark.timeout(600)
async def test_form_runs_a_step_in_training_mode(page: Page, service: Service) -> None:
    await open_form(page, service)
    await page.locator("textarea").nth(1).fill("pupil")
    await choose(page, "inference", "training")
    await (
        page.locator("textarea")
        .filter(has_text="traces")
        .or_(page.locator("textarea").nth(2))
        .last.fill(str(service.dataset))
    )
    if folder := screenshots():
        await page.screenshot(path=folder / "form.png")
    run = await submit(page, service)
    await page.goto(f"http://127.0.0.1:{service.prefect_port}/runs/flow-run/{run}")
    await expect(page.get_by_text("Completed").first).to_be_visible(timeout=300 * SECONDS)
    await page.get_by_role("tab", name="Artifacts").click()
    for key in ("summary", "loss-curve", "training"):
        await expect(page.get_by_text(key, exact=True).first).to_be_visible(timeout=20 * SECONDS)
