"""Fixtures of the room of suites: a model server with the scripted model, and the public server before it."""

from collections.abc import Callable

import pytest

from tests.models.conftest import Server, serve

__all__ = ["serve"]


@pytest.fixture(scope="session")
def scripted(serve: Callable[..., Server]) -> Server:
    """The HTTP API for inference alone: it has no database and no Prefect server."""
    models = serve("timestep.models.server", MODEL="scripted", CONTEXT_LENGTH="1024")
    return serve("timestep.server", MODEL="scripted", MODEL_SERVER_URL=models.url)
