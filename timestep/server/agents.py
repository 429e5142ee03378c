"""/v1/agents."""

from fastapi import APIRouter

router = APIRouter()
