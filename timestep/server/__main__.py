"""``python -m timestep.server``: settings come from the environment."""

import uvicorn

from timestep.server.app import create_app
from timestep.settings import load_settings


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = load_settings()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
