"""The Responses API through the official client, on the real small model."""

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai._types import NOT_GIVEN
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.conftest import Service

MODEL = "local/assistant"
LIMITS: dict[str, Any] = {"model": MODEL, "max_output_tokens": 16, "temperature": 0}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=service.api, api_key="none", max_retries=0) as client:
        yield client


def test_a_response_is_answered_stored_and_found_again(client: OpenAI) -> None:
    response = client.responses.create(input="Say hello.", metadata={"topic": "greeting"}, **LIMITS)
    assert response.status in ("completed", "incomplete") and response.output_text
    assert response.usage and response.usage.output_tokens > 0 and response.metadata == {"topic": "greeting"}
    assert client.responses.retrieve(response.id) == response
    (item,) = client.responses.input_items.list(response.id).data
    assert item.type == "message" and item.content[0].text == "Say hello."
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError, match=response.id):
        client.responses.retrieve(response.id)


def test_a_streamed_response_tells_the_same_as_the_whole_one(client: OpenAI) -> None:
    events = list(client.responses.create(input="Say hello.", stream=True, **LIMITS))
    checked(events)
    whole = events[-1].response
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert whole.output_text == client.responses.create(input="Say hello.", **LIMITS).output_text
    assert client.responses.retrieve(whole.id) == whole


def checked(events: list[Any], first: int = 0) -> None:
    """As the client's own types say they are, and numbered without a gap."""
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event.model_dump(), strict=False)
    assert [event.sequence_number for event in events] == list(range(first, first + len(events)))
    assert events[-1].type in ("response.completed", "response.incomplete", "response.failed")
