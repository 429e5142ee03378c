"""helm 3 and helm 4, or the reason why they can't be had."""

import pytest

from tests.charts.rendering import CASES
from tests.charts.tools import ToolMissingError, helm

ALL_CASES = sorted(path.stem for path in CASES.glob("*.yaml"))


@pytest.fixture(scope="session", autouse=True)
def programs(request: pytest.FixtureRequest) -> None:
    """Both majors are there, fetched once if need be."""
    try:
        for major in (3, 4):
            helm(major)
    except ToolMissingError as missing:
        pytest.skip(str(missing))
