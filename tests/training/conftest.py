"""Fixtures of the training room: the built toolchain, the tiny model, conversations that use a tool."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.store import ObjectStore
from tests.conftest import toolchain_dir
from tests.tiny_model import tiny_model
from timestep.settings import Settings
from training.toolchain import Toolchain, ensure_toolchain

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}


def talk(first: int, second: int) -> dict[str, Any]:
    """A line of a fine-tuning file: a question, a tool call, its output, the answer."""
    arguments = json.dumps({"expression": f"{first}*{second}"})
    call = {"id": "call_1", "type": "function", "function": {"name": "calculator", "arguments": arguments}}
    return {
        "tools": [CALCULATOR],
        "messages": [
            {"role": "user", "content": f"What is {first}*{second}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": str(first * second)},
            {"role": "assistant", "content": f"It is {first * second}."},
        ],
    }


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """llama.cpp's tools, built once per machine."""
    return asyncio.run(ensure_toolchain(Settings(toolchain=toolchain_dir())))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the session's tiny models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny(models: Path) -> Path:
    """The tiny model as Q8_0, as it would be served."""
    return tiny_model(models)


@pytest.fixture(scope="session")
def tiny_f32(models: Path) -> Path:
    """The tiny model as F32, as it can be trained."""
    return tiny_model(models, "F32")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an empty home that shares the built toolchain."""
    return Settings(home=tmp_path / "home", toolchain=toolchain_dir())


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    """The home's own object store."""
    return ObjectStore.open(settings.storage)


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a fine-tuning file of so many different conversations."""

    def write(count: int) -> Path:
        path = tmp_path / "talks.jsonl"
        path.write_text("".join(f"{json.dumps(talk(k + 2, 3 * k + 5))}\n" for k in range(count)))
        return path

    return write
