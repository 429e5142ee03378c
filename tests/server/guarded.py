"""A real HTTP server before a model server without weights, with everything that is a secret set; its log is kept."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT, environment, free_port
from tests.models.conftest import answers, wait_for
from timestep.database.engine import Database
from timestep.keys import Keys, Scope

SERVICE_KEY = "ts-of-the-service-itself-00000000"
PROVIDER_KEY = "of-a-provider-1111111111"
SECRETS = (SERVICE_KEY, PROVIDER_KEY)
MAX_BODY = 100_000
MESSAGES: list[Any] = [{"role": "user", "content": "What is 17 times 23?"}]
ASKED: dict[str, Any] = {"model": "scripted", "messages": MESSAGES}


@dataclass
class Guarded:
    """One server. ``log`` is what it wrote."""

    log_file: Path
    settings: dict[str, str]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30, trust_env=False, verify=False))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def start(self, module: str = "timestep.server") -> None:
        own = {"HOME": str(self.log_file.parent), "PORT": str(self.port), "MODEL_PORT": str(self.port)} | self.settings
        variables = environment() | {f"TIMESTEP_{name}": value for name, value in own.items()}
        variables |= {"OPENAI_API_KEY": f"sk-{PROVIDER_KEY}", "PREFECT_HOME": str(self.log_file.parent)}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module], cwd=ROOT, env=variables, stderr=log, stdout=log
            )
        wait_for(lambda: answers(self.url) or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.log

    def end(self) -> None:
        self.client.close()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(15)

    def ask(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        headers = options.pop("headers", {}) | ({"authorization": f"Bearer {key}"} if key else {})
        return self.client.request(method, f"{self.url}{path}", headers=headers, **options)

    async def key(self, database: Database, *scopes: Scope, per_minute: int | None = None) -> str:
        """A new key, once the server asks for one."""
        _, key = await Keys(database).create("test", scopes, per_minute)
        until(lambda: self.ask("GET", "/v1/nowhere").status_code == 401)
        return key


def until(holds: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.05)


def secrets_in(text: str, *more: str) -> list[str]:
    """Which secrets stand in it."""
    return [secret for secret in (*SECRETS, *more) if secret in text]
