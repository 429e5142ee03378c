"""The service that the comparisons run against: ``timestep up`` on a folder and ports of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.figure import Bench
from deployments.environment import service_environment
from deployments.local import down, free_port, status
from timestep.settings import Settings, load_settings

AGENTS = Path(__file__).with_name("agents_file.py")


@asynccontextmanager
async def running_service(folder: Path) -> AsyncIterator[Bench]:
    """Starts it, and stops it at the end."""
    agents = Path(shutil.copy(AGENTS, folder / "agents.py"))
    settings = load_settings(
        home=folder / "home",
        port=free_port(),
        prefect_port=free_port(),
        model_port=free_port(),
        agents=[agents],
        toolchain=Settings().toolchain_dir,
    )
    environment = os.environ | settings.environment()
    subprocess.run([sys.executable, "-m", "timestep", "up", "--detach"], env=environment, check=True, stdout=sys.stderr)
    try:
        state = status(settings)
        assert state is not None
        settings = settings.model_copy(
            update={
                "database_url": state.urls.database,
                "model_server_url": state.urls.model_server,
                "prefect_api_url": state.urls.prefect_api,
            }
        )
        yield Bench(settings, service_environment(settings, "benchmark"), folder)
    finally:
        await down(settings)
