"""The key by which a service's own parts ask its HTTP API: one per home, in a file that its owner alone may read."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from timestep.errors import UsageError
from timestep.settings import Settings


def key_path(settings: Settings) -> Path:
    """Where the key is kept."""
    return settings.run_dir / "service.key"


def kept(settings: Settings) -> SecretStr:
    """The key that is set, or the home's, made where there is none. UsageError: the file is another user's."""
    if (key := known(settings)) is not None:
        return key
    path = key_path(settings)
    path.unlink(missing_ok=True)  # an empty one, of a start that was cut
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"ts-{secrets.token_urlsafe(32)}")
    return kept(settings)


def known(settings: Settings) -> SecretStr | None:
    """The key that is set, or the home's where this user may read it. UsageError: others may."""
    if settings.service_key is not None and settings.service_key.get_secret_value():
        return settings.service_key
    path = key_path(settings)
    with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise UsageError(f"Others may read '{path}', the service's key. Remove it: the next start makes a new one.")
        if text := path.read_text().strip():
            return SecretStr(text)
    return None
