"""What a person does in the cluster's Prefect UI, in a real browser: log in, fill in the form of a step, submit."""

from pathlib import Path

from playwright.async_api import expect

from tests.ui.browser import field, new_page, select

MILLISECONDS = 60_000


async def submit(ui: str, login: str, deployment: str, agent: str, text: str, picture: Path) -> None:
    """Until the run is made. ``ui`` is its URL; ``login``, 'user:password'; ``picture``, where the filled form goes.

    Raises:
        AssertionError, playwright's Error: a page isn't what it should be.
    """
    async with new_page(ui.partition("//")[2]) as page:
        await page.goto(ui)
        await page.locator("input[type=password]").fill(login, timeout=MILLISECONDS)
        await page.get_by_role("button", name="Login").click()
        await expect(page.locator("input[type=password]")).to_have_count(0, timeout=MILLISECONDS)
        await page.goto(f"{ui}/deployments/deployment/{deployment}/run")
        await field(page, "Input").locator("textarea").fill(text, timeout=MILLISECONDS)
        await field(page, "Agent").locator("textarea").fill(agent)
        await select(page, "Mode", "inference")
        await page.screenshot(path=picture)
        async with page.expect_response(lambda answer: "create_flow_run" in answer.url, timeout=MILLISECONDS) as sent:
            await page.get_by_role("button", name="Submit").click()
        assert (await sent.value).ok, await (await sent.value).text()
