"""/v1/conversations."""

from fastapi import APIRouter

router = APIRouter()
