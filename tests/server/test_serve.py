"""``timestep serve``: the HTTP server alone, over parts that run elsewhere."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.conftest import ROOT, environment
from tests.models.conftest import Server, answers, serve, wait_for
from tests.server.stage import staged
from tests.test_cli import timestep

__all__ = ["serve"]


def test_it_serves_parts_that_are_named_until_it_is_told_to_end(
    serve: Callable[..., Server], postgres_url: str, tmp_path: Path
) -> None:
    models = serve("timestep.models.server", MODEL="scripted")
    with staged(postgres_url, "prefect") as stage:
        url, home = f"http://127.0.0.1:{stage.port}", ("--home", str(tmp_path))
        parts = ("--prefect-api-url", stage.prefect_api, "--model-server-url", models.url)
        command = ("serve", "--port", str(stage.port), *home, "--database-url", postgres_url, *parts)
        process = subprocess.Popen([sys.executable, "-m", "timestep", *command], cwd=ROOT, env=environment())

        def status(path: str, key: str = "") -> int:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return httpx.get(f"{url}{path}", headers=headers, timeout=30).status_code

        try:
            wait_for(lambda: answers(url) or process.poll() is not None, 60)
            key = timestep("keys", "create", "ci", *home, DATABASE_URL=postgres_url).stdout.strip()
            wait_for(lambda: status("/v1/models") == 401, 20)
            assert [status(path, key) for path in ("/health", "/v1/models", "/v1/steps")] == [200, 200, 200]
            assert timestep("keys", "revoke", "ci", *home, DATABASE_URL=postgres_url).returncode == 0
            wait_for(lambda: status("/v1/models", key) == 401, 20)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == -signal.SIGTERM
        finally:
            process.kill()
