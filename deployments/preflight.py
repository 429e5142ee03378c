"""What `up` looks at before it starts anything, so that a mistake is one line at once and not a child's log later."""

import errno
import socket
import sys
import tempfile
from pathlib import Path

from timestep.database.engine import Database
from timestep.errors import ConflictError, UsageError
from timestep.settings import Settings


def make_home(settings: Settings) -> None:
    """Make the home's folders. UsageError names the one that can't be made or written."""
    for folder in (settings.home, settings.run_dir, settings.log_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            why = f"Folder '{folder}' can't be used: {error.strerror}."
            raise UsageError(f"{why} Choose another home: --home FOLDER") from None


def check_settings(settings: Settings) -> None:
    """Raise unless the ports are free, and the database's URL and the base model can be meant.

    Errors: ConflictError (a port), UsageError (host, port or URL), NotFoundError and ModelFileError (the model).
    """
    if settings.port == settings.prefect_port:
        raise ConflictError(f"Port {settings.port} is asked for twice: --port and --prefect-port.")
    _check_port(settings.host, settings.port, "--port")
    _check_port(settings.prefect_host, settings.prefect_port, "--prefect-port")
    if settings.database_url:
        Database(settings.database_url)
    _check_model(settings.model)


def _check_port(host: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":  # a port in TIME_WAIT is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise UsageError(f"This user may not listen on port {port}. Choose another: {option} N") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(f"Port {port} is taken on {host}. Choose another: {option} N") from None
            why = f"Nothing can listen on host '{host}': {error.strerror}."
            raise UsageError(f"{why} Choose an address of this machine: --host ADDRESS") from None


def _check_model(model: str) -> None:
    """A URL is fetched when the model is first asked for; anything else is a file that must be here."""
    from timestep.models.files import (
        SCRIPTED,
        built_in_file,
        check_gguf,
    )  # slow, and `timestep status` has no use for it

    if model != SCRIPTED.name and not model.startswith(("http://", "https://")):
        check_gguf(Path(model) if model.endswith(".gguf") else built_in_file(model))
