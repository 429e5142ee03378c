"""/v1/fine_tuning/jobs."""

from fastapi import APIRouter

router = APIRouter()
