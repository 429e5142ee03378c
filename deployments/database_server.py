"""The embedded PostgreSQL for other machines, `python -m deployments.database_server`: the image's role `database`.

The server of `timestep up` (deployments/postgres.py) listens on no network. This one does, and asks there for the
password of its one user; its socket, which only its own machine reaches (in a pod: its container), asks for none.
"""

import asyncio
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.postgres import EmbeddedPostgres, let_through, programs_folder, unprivileged
from deployments.supervisor import EXIT_CONFIG
from timestep.errors import TimestepError, UsageError
from timestep.settings import Settings, load_settings

USER = "timestep"
DATA = "/var/lib/postgresql/data/pgdata"
DEFAULTS = {
    "listen_addresses": "*",
    "unix_socket_directories": "/tmp",
    "max_connections": "200",
    # What parallel queries and index builds share would else be in /dev/shm, which has 64 MB in a container.
    "min_dynamic_shared_memory": "64MB",
}
ACCESS = """\
# Written at every start.
local all         all     trust
local replication all     trust
host  all         all all scram-sha-256
host  replication all all scram-sha-256
"""


@dataclass(frozen=True)
class DatabaseServer:
    """One data folder, the password of its user, and what is set otherwise than PostgreSQL has it by default."""

    postgres: EmbeddedPostgres
    password: str
    options: dict[str, str]

    def run(self) -> int:
        """Serve until told to stop; returns the server's exit code."""
        data = self.postgres.data
        try:
            data.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock()
            self._prepare()
        except OSError as error:
            raise TimestepError(
                f"'{error.filename or data}' can't be used as user {os.geteuid()}: {error.strerror}."
            ) from error
        self._set_password()
        flags = [part for name, value in self.options.items() for part in ("-c", f"{name}={value}")]
        # It keeps the lock, even if this process is killed before it.
        server = self._start("postgres", "-D", str(data), *flags, pass_fds=[lock])

        def stop(*_: object) -> None:
            # SIGTERM would make it wait until its clients leave. By SIGINT it sends them away.
            server.send_signal(signal.SIGINT)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        code = server.wait()
        return code if code >= 0 else 128 - code

    def _lock(self) -> int:
        """Wait until no other server uses the data. PostgreSQL's own lock does not see into another container."""
        data = self.postgres.data
        lock = os.open(data.parent / f".{data.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another server uses '{data}'. Waiting for its end.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def _prepare(self) -> None:
        postgres, data = self.postgres, self.postgres.data
        if postgres.user is not None:
            let_through([data, postgres.programs])
        if not (data / "PG_VERSION").exists():
            for leftover in data.parent.glob("new-*"):  # of starts that were killed
                shutil.rmtree(leftover)
            asyncio.run(postgres.make_data("-U", USER, "--auth-local=trust", "--auth-host=reject"))
        # A volume's group may have been given rights to all in it, with which PostgreSQL does not start.
        data.chmod(0o700)
        access = data / "pg_hba.conf"
        access.write_text(ACCESS)

    def _set_password(self) -> None:
        """Before the server listens, so that an old password is never good again."""
        statement = f"ALTER ROLE {USER} SUPERUSER LOGIN PASSWORD '{self.password.replace(chr(39), chr(39) * 2)}'\n"
        process = self._start(
            *("postgres", "--single", "-D", str(self.postgres.data), "-c", "exit_on_error=on"),
            *("-c", "log_min_error_statement=panic", "postgres"),  # no log quotes the statement
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = process.communicate(statement.encode())[0].decode(errors="replace").strip()
        if process.returncode != 0:
            raise TimestepError(f"PostgreSQL can't use the data in '{self.postgres.data}': {output[-2000:]}")

    def _start(self, program: str, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
        postgres = self.postgres
        return subprocess.Popen(
            [postgres.programs / program, *arguments],
            cwd=postgres.data,
            user=postgres.user,
            group=postgres.group,
            extra_groups=None if postgres.user is None else [],
            **streams,
        )


def database_server(settings: Settings, environment: Mapping[str, str]) -> DatabaseServer:
    """The server of PostgreSQL's own variables PGDATA and PGPORT, and of our TIMESTEP_DATABASE_SETTINGS."""
    password = settings.database_password.get_secret_value() if settings.database_password else ""
    if not password:
        raise UsageError("No password for the database. Set TIMESTEP_DATABASE_PASSWORD.")
    if not password.isprintable():
        raise UsageError("TIMESTEP_DATABASE_PASSWORD holds a line break or another character that can't be typed.")
    options = dict(DEFAULTS)
    for part in shlex.split(environment.get("TIMESTEP_DATABASE_SETTINGS", "")):
        name, sign, value = part.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError(f"TIMESTEP_DATABASE_SETTINGS: '{part}' is not NAME=VALUE, such as shared_buffers=256MB.")
        options[name] = value
    data = Path(environment.get("PGDATA", DATA))
    socket = Path(options["unix_socket_directories"])
    return DatabaseServer(EmbeddedPostgres(data, socket, programs_folder(), *unprivileged(data)), password, options)


def main() -> int:
    """Serve until told to stop. What a restart can't help ends with EX_CONFIG."""
    try:
        return database_server(load_settings(), os.environ).run()
    except TimestepError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_CONFIG if error.status < 500 else 1


if __name__ == "__main__":
    sys.exit(main())
