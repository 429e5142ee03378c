"""A headless Chromium on the Prefect UI, and the parts of its forms."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Locator, Page, async_playwright, expect

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@asynccontextmanager
async def new_page(host: str = "127.0.0.1") -> AsyncIterator[Page]:
    """A page of 1360 x 900 pixels; requests to any but this host are refused."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        page = await browser.new_page(viewport={"width": 1360, "height": 900})
        await page.route(lambda url: host not in url and not url.startswith("data:"), lambda r: r.abort())
        yield page
        await browser.close()


def field(page: Page, title: str) -> Locator:
    """The innermost part of a form that is labelled with this title."""
    label = page.locator(".schema-form-property__label", has_text=re.compile(rf"^{title} \(Optional\)$"))
    return page.locator(".schema-form-property").filter(has=label).last


async def select(page: Page, title: str, option: str) -> None:
    """Pick an option of a select box, by keyboard: a click toggles it shut again before it is shown."""
    control = field(page, title).locator("button.p-select-button__control")
    await control.focus()
    await page.keyboard.press("Space")
    await page.get_by_role("option", name=option, exact=True).click()
    await expect(control).to_have_text(option)
