"""The official client, as any program would make it: address and key come from OPENAI_BASE_URL and OPENAI_API_KEY."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time in a zone.",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", required=True)
    parser.addoption("--embedding-model", required=True)


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--model"))


@pytest.fixture(scope="session")
def embedding_model(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--embedding-model"))


@pytest.fixture(scope="session")
def client() -> Iterator[OpenAI]:
    with OpenAI(timeout=120, max_retries=0) as client:
        yield client


@pytest.fixture
def async_client() -> AsyncOpenAI:
    return AsyncOpenAI(timeout=120, max_retries=0)


def until(read: Callable[[], Any], ends: set[str], seconds: float = 180) -> Any:
    """What ``read`` gives once its status is one of ``ends``."""
    last = time.monotonic() + seconds
    while (seen := read()).status not in ends:
        assert time.monotonic() < last, f"still {seen.status} after {seconds} s"
        time.sleep(0.25)
    return seen
