"""The running service's state: one small JSON file under the home, written by `up` alone.

A state whose process is gone is no service: the process id is checked together with its start time,
so that a number used again by another program isn't mistaken for ours.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, Field, ValidationError, field_validator
from sqlalchemy.engine import make_url

from timestep.errors import UsageError
from timestep.settings import Settings


class Urls(BaseModel):
    """Where a service answers. ``database`` carries no password."""

    api: str
    prefect_ui: str
    prefect_api: str
    model_server: str
    database: str

    @field_validator("database")
    @classmethod
    def _without_password(cls, url: str) -> str:
        shown = make_url(url).difference_update_query(["password", "sslpassword"])
        return shown.render_as_string(hide_password=True)


class ChildState(BaseModel):
    """One supervised process; ``pid`` is None between an exit and the next start."""

    pid: int | None = None
    ready: bool = False
    restarts: int = 0


class ServiceState(BaseModel):
    """What `timestep status` shows; ``process_started`` is the parent's start in seconds since the epoch.

    ``storage`` and ``database`` are the URLs of the object store and of PostgreSQL with their secrets, for commands
    from another shell: they're in the file, which its owner alone may read, and in no other dump.
    """

    pid: int = Field(default_factory=os.getpid)
    process_started: float = Field(default_factory=lambda: psutil.Process().create_time())
    started: datetime = Field(default_factory=lambda: datetime.now(UTC))
    ready: bool = False
    urls: Urls
    storage: str = Field(exclude=True, repr=False)
    database: str = Field("", exclude=True, repr=False)
    children: dict[str, ChildState] = {}

    def is_alive(self) -> bool:
        """Whether the process that wrote this state still runs."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:  # ended, and its parent hasn't asked yet
                return False
            return bool(abs(process.create_time() - self.process_started) < 1)
        except psutil.NoSuchProcess:
            return False

    def save(self, settings: Settings) -> None:
        """Write the state so that a reader sees the old one or the new one, never a part."""
        path = state_path(settings)
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600, exist_ok=False)
        secrets = {"storage": self.storage, "database": self.database}
        partial.write_text(json.dumps(self.model_dump(mode="json") | secrets, indent=2))
        partial.replace(path)


def state_path(settings: Settings) -> Path:
    """The file of the state."""
    return settings.run_dir / "service.json"


def load_state(settings: Settings) -> ServiceState | None:
    """State of the service that runs on this home, or None. UsageError: it's another user's."""
    path = state_path(settings)
    try:
        state = ServiceState.model_validate_json(path.read_bytes())
    except PermissionError:
        raise UsageError(f"'{path}' belongs to another user, and so does the service of this home.") from None
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    return state if state.is_alive() else None
