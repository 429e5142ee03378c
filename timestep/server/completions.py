"""POST /v1/completions: how texts go on, streamed or whole."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from openai.types.completion import Completion
from openai.types.completion_choice import CompletionChoice, Logprobs

from timestep.models.request import CompletionRequest
from timestep.server.inference import documented, infer
from timestep.server.refusals import known_query

router = APIRouter(tags=["inference"], dependencies=[Depends(known_query)])


class TextLogprobs(Logprobs):
    """OpenAI's; a prompt's first token has no probability."""

    token_logprobs: list[float | None] | None = None  # type: ignore[assignment]


class TextChoice(CompletionChoice):
    """OpenAI's, with our log probabilities."""

    logprobs: TextLogprobs | None = None


class TextCompletion(Completion):
    """OpenAI's, with our choices."""

    choices: list[TextChoice]  # type: ignore[assignment]


_DOCUMENT: dict[str, Any] = documented(CompletionRequest, TextCompletion, streams=True)


@router.post("/v1/completions", operation_id="createCompletion", summary="Create a completion.", **_DOCUMENT)
async def completions(request: Request) -> Response:
    """The answer of the model server, or of the provider that the model's prefix names, as it comes."""
    return await infer(request, "/completions")
