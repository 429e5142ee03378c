"""The Prefect server as one process, `python -m deployments.prefect_server`, and the environment it needs.

Runs Prefect's own application; its command line is passed by, which saves a second of imports at every start.
It asks for no key, so that whoever reaches it may run anything: pages of other sites, which any browser on this
machine would let ask, are refused.
"""

import sys

from timestep.settings import Settings, load_settings


def server_environment(settings: Settings, database_url: str) -> dict[str, str]:
    """Variables of the server alone; ``database_url`` is ``postgresql+asyncpg://…``."""
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_SERVER_API_HOST": settings.prefect_host,
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        # The page asks there. By default it asks port 4200 of the browser's machine, whatever served it; a path
        # is right on every port, behind every proxy and tunnel.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # By default the pages of every site may ask.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
            f"http://{name}:{settings.prefect_port}" for name in ("127.0.0.1", "localhost")
        ),
    }


def reachable(host: str) -> str:
    """An address a client on this machine can use for a server that listens on ``host``."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def warning(settings: Settings) -> str | None:
    """What is to be said of a server that other machines reach."""
    from timestep.models.guard import is_local  # slow, and `timestep status` has no use for it

    if is_local(f"[{settings.prefect_host}]" if ":" in settings.prefect_host else settings.prefect_host):
        return None
    return (
        f"The Prefect server listens on '{settings.prefect_host}' and asks for no key: whoever reaches its port "
        f"{settings.prefect_port} may run anything here."
    )


def main() -> None:
    """Serve until told to stop."""
    import uvicorn
    from prefect.server.api.server import create_app

    from timestep.models.guard import Guarded

    settings = load_settings()
    if (said := warning(settings)) is not None:
        print(said, file=sys.stderr, flush=True)
    uvicorn.run(
        Guarded(create_app(final=True)),
        host=settings.prefect_host,
        port=settings.prefect_port,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
