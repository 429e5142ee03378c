"""/v1/files."""

from fastapi import APIRouter

router = APIRouter()
