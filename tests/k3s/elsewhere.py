"""What is in no cluster: PostgreSQL, an S3 server and Redis, processes beside the control plane."""

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from storage.drivers import parse_url
from tests.k3s.machine import OUTSIDE, ClusterError, last_words

DATABASE_PORT, BUCKET_PORT, REDIS_PORT = 5432, 9100, 6379
BUCKET = "artifacts"


class Elsewhere:
    """All of them, started; they end with the namespace they are in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir()
        password = secrets.token_hex(8)
        self.database_url = f"postgresql://timestep:{password}@{OUTSIDE}:{DATABASE_PORT}/postgres"
        server = f"endpoint=http://{OUTSIDE}:{BUCKET_PORT}&region=us-east-1"
        self.storage_url = f"s3://key:secret@{BUCKET}/prefix?{server}"
        self.redis_url = f"redis://default:{password}@{OUTSIDE}:{REDIS_PORT}/0"
        self._start(
            *("database", sys.executable, "-m", "deployments.database_server"),
            PGDATA=str(folder / "data"),
            TIMESTEP_DATABASE_PASSWORD=password,
            TIMESTEP_DATABASE_SETTINGS="unix_socket_directories=''",
        )
        main = "from moto.server import main; main()"
        self._start("bucket", sys.executable, "-c", main, "-H", OUTSIDE, "-p", str(BUCKET_PORT))
        here = ("--bind", OUTSIDE, "--port", str(REDIS_PORT), "--dir", str(folder))
        self._start("redis", "redis-server", *here, "--requirepass", password, "--save", "")

    def answer(self) -> bool:
        """Whether they all do. ClusterError: one has ended, with its last words."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                said = last_words(self._folder / f"{name}.log")
                raise ClusterError(f"{name} ended with {process.returncode}: {said}")
        try:
            for port in (DATABASE_PORT, BUCKET_PORT, REDIS_PORT):
                socket.create_connection((OUTSIDE, port), 1).close()
        except OSError:
            return False
        return True

    def make_bucket(self) -> None:
        """An empty one."""
        parse_url(self.storage_url).connect().create_container(BUCKET)

    def _start(self, name: str, *command: str, **variables: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | variables)
