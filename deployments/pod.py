"""What a container of the image runs, `python -m deployments.pod ROLE [options]`: a role for each kind of pod.

Completes the environment (Prefect's settings follow from ours) and becomes the role's program, so that signals reach
it and its exit code is the container's. What the pod sets itself is kept.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from deployments.environment import pod_environment
from timestep.errors import UsageError
from timestep.settings import load_settings

EXIT_USAGE = 2
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

# The module of each role, with its options; those of the command line follow.
ROLES = {
    "database": ("deployments.database_server",),
    "secrets": ("deployments.secrets",),
    "migrate": ("deployments.migrate",),
    "wait": ("deployments.migrate", "--wait"),
    "prefect-server": ("deployments.prefect_server",),
    "model-server": ("timestep.models.server", "--preload"),
    "api": ("timestep.server",),
    "warm-worker": ("deployments.worker", "--join"),
    "worker": ("deployments.kubernetes",),
    "register": ("deployments.register",),
    "job": ("prefect", "flow-run", "execute"),  # which flow run, PREFECT__FLOW_RUN_ID says
}
# They know neither Prefect nor the home.
BARE_ROLES = ("database", "secrets")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Become the role's program, or end with one line that says why that can't be."""
    role, *options = list(sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        environment = _environment(role)
    except UsageError as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(EXIT_USAGE) from None
    os.execve(sys.executable, [sys.executable, "-m", *ROLES[role], *options], environment)


def _environment(role: str) -> dict[str, str]:
    """The role's environment; makes the folders of the home, and goes to the one that the role is to start in."""
    if role not in ROLES:
        raise UsageError(f"No role '{role}'. Roles: {', '.join(ROLES)}.")
    if role in BARE_ROLES:
        return dict(os.environ)
    try:
        settings = load_settings()
        for folder in (settings.home, settings.run_dir, settings.log_dir):
            folder.mkdir(parents=True, exist_ok=True)
        if role == "job":
            # Prefect copies the folder that a flow run starts in, which would be the whole installation.
            empty = settings.home / "job"
            empty.mkdir(exist_ok=True)
            os.chdir(empty)
        return pod_environment(settings, **(_worker_variables() if role == "worker" else {}))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        name = str(wrong["loc"][0]).upper().removeprefix("TIMESTEP_")
        raise UsageError(f"TIMESTEP_{name}: {wrong['msg']}.") from error
    except OSError as error:
        why = f"Folder '{error.filename}' can't be used: {error.strerror}."
        raise UsageError(f"{why} TIMESTEP_HOME names one that can be written.") from error


def _worker_variables() -> dict[str, str]:
    """What the worker that makes pods needs."""
    variables = {"PREFECT_WORKER_QUERY_SECONDS": "2"}  # a pod takes longer to start
    # Prefect's observer looks at the whole cluster unless told where.
    with suppress(OSError):
        variables["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] = NAMESPACE.read_text().strip()
    return variables


if __name__ == "__main__":
    main()
