"""Options that several commands share, and what they lead to: settings, the running service, an event loop."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from timestep.errors import UsageError

# Prefect, the Agents SDK and llama.cpp take seconds to import: each command imports what it needs.

Home = Annotated[Path | None, typer.Option(help="Folder that holds everything.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result alone, as JSON, on stdout.")]
Agent = Annotated[str, typer.Option(help="Name of a registered agent.")]
Model = Annotated[str | None, typer.Option(help="Instead of the agent's own: local/NAME[@VERSION] or a provider's.")]


def settings_of(**overrides: object) -> Any:
    """Settings from the environment and from options; a bad value is named.

    Raises:
        UsageError: the value, and why it can't be meant.
    """
    from pydantic import ValidationError

    from timestep.settings import load_settings

    try:
        return load_settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"Setting '{name}' has value '{first['input']}'. {first['msg']}.") from error


def service_of(home: Path | None, **overrides: object) -> Any:
    """Settings of the service that runs on this home, or those of the environment where none does.

    ``overrides`` are options that the user gave; None is none.
    """
    from deployments import service_key
    from deployments.local import status as read_status

    settings = settings_of(home=home, **overrides)
    state = read_status(settings)
    if state is None:
        return settings
    if not state.ready:
        raise UsageError("The service is still starting. See: timestep status")
    running = {
        "prefect_api_url": state.urls.prefect_api,
        "model_server_url": state.urls.model_server,
        "storage_url": state.storage,
        "database_url": state.database or None,
        "service_key": service_key.known(settings),
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    return settings_of(**{"home": home, **running, **given})


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it to its end; Ctrl-C cancels it and ends the program the way the shell expects."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        # The shell expects death by the signal, not an exit code that looks like one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
