"""POST /v1/embeddings."""

from fastapi import APIRouter

router = APIRouter()
