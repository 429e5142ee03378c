"""The environment of a service's processes: our settings, Prefect's settings, the instance's mark.

Prefect settings of the user (a profile, a cloud's URL and key) must not leak into the service, nor the service's
into the user's: it has a Prefect home of its own, and inherited ``PREFECT_*`` variables are dropped, logging apart.
"""

import os
import sysconfig
from importlib.util import cache_from_source
from pathlib import Path

import certifi
import psutil

from deployments import instance
from timestep.settings import Settings

# Spelled out: storage.block, whose name it is, imports Prefect, and `timestep status` would wait for that.
STORAGE_BLOCK = "timestep-storage/default"

SPINCOUNT = "300"


def service_environment(settings: Settings, mark: str) -> dict[str, str]:
    """Variables of every process of the service."""
    return {
        **_inherited(settings),
        **settings.environment(),
        **prefect_environment(settings),
        instance.VARIABLE: mark,
        "PYTHONUNBUFFERED": "1",
        # Why: timestep/models/__init__.py.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINCOUNT),
    }


def pod_environment(settings: Settings, **others: str) -> dict[str, str]:
    """Variables of a process in a pod: what the pod sets, completed by what only this program knows."""
    completed = {"PYTHONUNBUFFERED": "1", "GOMP_SPINCOUNT": SPINCOUNT, **prefect_environment(settings), **others}
    return {**completed, **os.environ}


def prefect_environment(settings: Settings) -> dict[str, str]:
    """Prefect's settings for whoever talks to the service's Prefect server."""
    variables = {
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_API_URL": settings.prefect_api,
        "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": STORAGE_BLOCK,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # With the defaults, finished work becomes Failed when the server is away for 90 s, or PostgreSQL for a moment.
        "PREFECT_CLIENT_MAX_RETRIES": "10",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    if settings.prefect_api.startswith("http://"):
        variables["PREFECT_API_SSL_CERT_FILE"] = _quick_certificates(settings)
    if settings.prefect_auth is not None:
        variables["PREFECT_API_AUTH_STRING"] = settings.prefect_auth.get_secret_value()
    return variables


def detached_environment(settings: Settings) -> dict[str, str]:
    """Variables of a service that runs apart from the terminal: the caller's, with these settings."""
    return {**_inherited(settings), **settings.environment()}


def _inherited(settings: Settings) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TIMESTEP_", "PREFECT_")) or name.startswith("PREFECT_LOGGING_")
    }
    # The processes find our packages where this one did, whether those are installed or a checkout.
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sysconfig.get_paths().values():
        kept["PYTHONPATH"] = os.pathsep.join(part for part in (root, kept.get("PYTHONPATH", "")) if part)
    # A proxy meant for the outside must not stand between processes of one machine.
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(part for part in (kept.get(name, ""), "127.0.0.1", "localhost") if part)
    # Without any bytecode each process compiles 2,000 modules, 5 to 10 s: where Python is told to write none
    # beside the sources, and none is there, it's kept under the home.
    if "PYTHONDONTWRITEBYTECODE" in kept and not Path(cache_from_source(psutil.__file__)).exists():
        del kept["PYTHONDONTWRITEBYTECODE"]
        kept["PYTHONPYCACHEPREFIX"] = str(settings.cache_dir / "bytecode")
    return kept


def _quick_certificates(settings: Settings) -> str:
    """A file with one certificate, the first of those Prefect would read in full for each of its clients (20 ms).

    Where the service's API is plain HTTP, none of them is ever used.
    """
    path = settings.home / "prefect" / "certificate.pem"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        end = "-----END CERTIFICATE-----\n"
        path.write_text(certifi.contents().partition(end)[0] + end)
    return str(path)
