"""The Prefect server, `python -m deployments.prefect_server`, and the environment it needs.

Runs Prefect's own application; its command line is passed by, which saves a second of imports at every start.
Without a login (TIMESTEP_PREFECT_AUTH) whoever reaches it may run anything: pages of other sites, which any browser on
this machine would let ask, are refused.

It is one process, or two kinds of them: `--web-only` answers requests and may run several times, `--services-only` does
all that nobody asks for. What they tell each other then goes by Redis.
"""

import argparse
import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deployments.supervisor import EXIT_CONFIG
from timestep.errors import TimestepError, UsageError
from timestep.settings import Settings, load_settings

REDIS = "prefect_redis."
MESSAGES = "PREFECT_REDIS_MESSAGING_"
# How Prefect's parts that several processes share are told to be in Redis.
SHARED = {
    "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": f"{REDIS}messaging",
    "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": f"{REDIS}messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": f"{REDIS}ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": f"{REDIS}lease_storage",
    "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": f"{REDIS}cleanup_queue",
}
# The migration has done it; of several that do so when they start together, all but one fail.
MIGRATED = {"PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
# The names that Prefect knew before.
SYNONYMS = {
    "PREFECT_MESSAGING_BROKER": "PREFECT_SERVER_EVENTS_MESSAGING_BROKER",
    "PREFECT_MESSAGING_CACHE": "PREFECT_SERVER_EVENTS_MESSAGING_CACHE",
}


def server_environment(settings: Settings, database_url: str) -> dict[str, str]:
    """Variables of the server alone; ``database_url`` is ``postgresql+asyncpg://…``."""
    variables = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_SERVER_API_HOST": settings.prefect_host,
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        # The page asks there. By default it asks port 4200 of the browser's machine, whatever served it; a path
        # is right on every port, behind every proxy and tunnel.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # By default the pages of every site may ask.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
            [*(f"http://{name}:{settings.prefect_port}" for name in ("127.0.0.1", "localhost")), *origins(settings)]
        ),
    }
    if settings.prefect_login is not None:
        variables["PREFECT_SERVER_API_AUTH_STRING"] = settings.prefect_login
    if not (made := _ui_folder()).exists() and not os.access(made.parent, os.W_OK):
        variables["PREFECT_UI_STATIC_DIRECTORY"] = str(settings.home / "prefect" / "ui")
    return variables


def origins(settings: Settings) -> list[str]:
    """The site at which people see the Prefect UI, where that has an address of its own."""
    address = urlsplit(settings.prefect_ui_url or "")
    return [f"{address.scheme}://{address.netloc}"] if address.netloc else []


def shared_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Variables by which the processes of a split server find each other in Redis. UsageError: no Redis is named."""
    given = {SYNONYMS.get(name, name): value for name, value in given.items()}
    chosen = {name: given.get(name, value) for name, value in SHARED.items()}
    if not any(name.startswith(MESSAGES) for name in given) or any(not v.startswith(REDIS) for v in chosen.values()):
        raise UsageError(
            "The web process and the services can't be apart without Redis: set PREFECT_REDIS_MESSAGING_HOST, and "
            "nothing of Prefect's to be kept in memory."
        )
    if importlib.util.find_spec(REDIS.rstrip(".")) is None:
        raise UsageError("The package 'prefect-redis' is not installed. Install it: pip install 'timestep[redis]'")
    # The queue of what is to be cleaned up has settings of its own, for the same Redis.
    queue = {
        name.replace(MESSAGES, "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_"): value
        for name, value in given.items()
        if name.startswith(MESSAGES)
    }
    return {**MIGRATED, **chosen, **{name: given.get(name, value) for name, value in queue.items()}}


def _ui_folder() -> Path:
    """Where Prefect puts its UI's files, made from those of its package at the first start."""
    spec = importlib.util.find_spec("prefect")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("server") / "ui_build"


def reachable(host: str) -> str:
    """An address a client on this machine can use for a server that listens on ``host``."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def warning(settings: Settings) -> str | None:
    """What is to be said of a server that other machines reach."""
    from timestep.models.guard import is_local  # slow, and `timestep status` has no use for it

    if settings.prefect_login or is_local(
        f"[{settings.prefect_host}]" if ":" in settings.prefect_host else settings.prefect_host
    ):
        return None
    return (
        f"The Prefect server listens on '{settings.prefect_host}' and asks for no key: whoever reaches its port "
        f"{settings.prefect_port} may run anything here."
    )


def complete_environment(settings: Settings, *, split: bool) -> None:
    """Set what Prefect's server is to know and nobody has set. UsageError: it can't be started so."""
    from timestep.database.engine import Database

    if not (url := os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL")):
        if not settings.database_url:
            raise UsageError("No database is named: set TIMESTEP_DATABASE_URL.")
        url = Database(settings.database_url).prefect_url
    shared = shared_environment(os.environ) if split else {}
    os.environ.update({**server_environment(settings, url), **os.environ, **shared})
    os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url


def serve(settings: Settings, *, services: bool) -> None:
    """Answer requests until told to stop; ``services``: and do all that nobody asks for."""
    import uvicorn
    from prefect.server.api.server import create_app

    from timestep.models.guard import Guarded

    if (said := warning(settings)) is not None:
        print(said, file=sys.stderr, flush=True)
    uvicorn.run(
        Guarded(create_app(final=True, webserver_only=not services), origins=origins(settings)),
        host=settings.prefect_host,
        port=settings.prefect_port,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


async def run_services() -> None:
    """Do all that nobody asks for, until told to stop."""
    from prefect.cli._server_utils import _run_all_services

    running = asyncio.ensure_future(_run_all_services())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    await asyncio.wait([running])
    if not running.cancelled():
        running.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; see the module."""
    parser = argparse.ArgumentParser(prog="prefect-server", description="Run Prefect's server.")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--web-only", action="store_true", help="answer requests, and leave the services to others")
    part.add_argument("--services-only", action="store_true", help="run the services, and answer no requests")
    chosen = parser.parse_args(arguments)
    settings = load_settings()
    try:
        complete_environment(settings, split=chosen.web_only or chosen.services_only)
    except TimestepError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_CONFIG
    if chosen.services_only:
        asyncio.run(run_services())
    else:
        serve(settings, services=not chosen.web_only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
