"""A headless Chromium, where one is installed; otherwise the tests skip and say how to get it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page

from tests.ui.browser import CHROMIUM, new_page


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of 1360 x 900 pixels; requests that leave this machine are refused."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium")
    async with new_page() as opened:
        yield opened


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    """Folder for screenshots, where ``--screenshots FOLDER`` asks for them."""
    folder = request.config.getoption("--screenshots")
    return Path(folder) if folder else None
