"""POST /v1/embeddings: the vectors of texts."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from openai.types import CreateEmbeddingResponse, Embedding

from timestep.models.request import EmbeddingRequest
from timestep.server.inference import documented, infer
from timestep.server.refusals import known_query

router = APIRouter(tags=["inference"], dependencies=[Depends(known_query)])


class AnyEmbedding(Embedding):
    """OpenAI's; base64 is text."""

    embedding: list[float] | str  # type: ignore[assignment]


class Embeddings(CreateEmbeddingResponse):
    """OpenAI's, in either encoding."""

    data: list[AnyEmbedding]  # type: ignore[assignment]


_DOCUMENT: dict[str, Any] = documented(EmbeddingRequest, Embeddings)


@router.post("/v1/embeddings", operation_id="createEmbedding", summary="Create embeddings.", **_DOCUMENT)
async def embeddings(request: Request) -> Response:
    """The answer of the model server, or of the provider that the model's prefix names, as it comes."""
    return await infer(request, "/embeddings")
