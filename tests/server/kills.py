"""The HTTP server of the running service, killed as by ``kill -9``; the supervisor starts the next."""

import time
from collections.abc import Callable

import httpx
import psutil

from deployments.state import load_state
from tests.conftest import Service
from timestep.settings import Settings


def server(service: Service) -> psutil.Process:
    """The HTTP server, as the supervisor last started it."""
    state = load_state(Settings(home=service.home))
    assert state is not None
    return psutil.Process(state.children["http-server"].pid)


def kill_server(service: Service) -> None:
    """Kill -9, and wait for the next."""
    process = server(service)
    process.kill()
    process.wait(10)

    def back() -> bool:
        try:
            return httpx.get(f"{service.api.removesuffix('/v1')}/health").is_success
        except httpx.HTTPError:
            return False

    until(back)


def until(there: Callable[[], bool], seconds: float = 60) -> None:
    """Until it is so, or the test fails."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)
