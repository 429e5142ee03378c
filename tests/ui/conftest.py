"""A headless Chromium, where one is installed; otherwise the tests skip and say how to get it."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of 1360 x 900 pixels; requests that leave this machine are refused."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        opened = await browser.new_page(viewport={"width": 1360, "height": 900})
        await opened.route(lambda url: "127.0.0.1" not in url and not url.startswith("data:"), lambda r: r.abort())
        yield opened
        await browser.close()


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    """Folder for screenshots, where ``--screenshots FOLDER`` asks for them."""
    folder = request.config.getoption("--screenshots")
    return Path(folder) if folder else None
