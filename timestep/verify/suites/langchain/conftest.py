"""Which models LangChain's standard tests ask; address and key come from OPENAI_BASE_URL and OPENAI_API_KEY."""

import pytest

# Of every chat model that is asked. The limit of tokens is for real ones: a small one talks until its context is full.
SETTINGS = {"max_tokens": 100, "temperature": 0, "max_retries": 0, "timeout": 120}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", required=True)
    parser.addoption("--embedding-model", required=True)


@pytest.fixture(autouse=True)
def _asked(request: pytest.FixtureRequest) -> None:
    """LangChain's test classes are asked for their model's parameters by a property, which sees no fixture."""
    if request.cls is not None:
        request.cls.asked = request.config.getoption("--model")
        request.cls.settings = SETTINGS
        request.cls.asked_to_embed = request.config.getoption("--embedding-model")
