"""POST /v1/chat/completions: one turn of a model, streamed or whole."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from openai.types.chat import ChatCompletion

from timestep.models.request import ChatRequest
from timestep.server.inference import documented, infer
from timestep.server.refusals import known_query

router = APIRouter(tags=["inference"], dependencies=[Depends(known_query)])

_DOCUMENT: dict[str, Any] = documented(ChatRequest, ChatCompletion, streams=True)


@router.post(
    "/v1/chat/completions", operation_id="createChatCompletion", summary="Create a chat completion.", **_DOCUMENT
)
async def chat_completions(request: Request) -> Response:
    """The answer of the model server, or of the provider that the model's prefix names, as it comes."""
    return await infer(request, "/chat/completions")
