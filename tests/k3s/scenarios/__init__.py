"""What is done to an installed chart, one after the other; each gives a row: its figure, and what was wrong."""

from collections.abc import Callable, Sequence

import asyncpg  # type: ignore[import-untyped]
import httpx
from playwright.async_api import Error as PlaywrightError

from tests.k3s.machine import ClusterError
from tests.k3s.release import Service
from tests.k3s.scenarios.kills import Kills
from tests.k3s.scenarios.machines import Machines
from tests.k3s.scenarios.revisions import Revisions
from tests.k3s.scenarios.use import Use
from tests.k3s.table import Row

Scenario = Callable[[], Row]
FAILURES = (
    *(ClusterError, httpx.HTTPError, PlaywrightError, asyncpg.PostgresError),
    *(OSError, ValueError, LookupError, AssertionError),
)


class Scenarios(Use, Kills, Revisions, Machines):
    """They build on each other: the release of the first is the one that the last removes."""

    def run(self, only: Sequence[str] = ()) -> None:
        """All of them, or some by name. One that fails doesn't keep the others from being tried; installing does."""
        self.table.add(self.install())
        if self.table.failed:
            return
        self.service = Service(self.release)
        rest: tuple[Scenario, ...] = (
            self.first_step,
            self.chart_test,
            self.latency,
            self.real_model,
            self.form,
            self.approval,
            self.learns,
            self.scheduled_batch,
            self.warm_worker_killed,
            self.training_pod_killed,
            self.api_killed,
            self.prefect_killed,
            self.database_killed,
            self.model_server_killed,
            self.power_cut,
            self.upgraded,
            self.flow_run_pod_killed,
            self.worker_killed,
            self.rolled_back,
            self.passwords_changed,
            self.uninstalled,
            self.without_image,
            self.installed_again,
            self.restored,
            self.applied,
            self.machine_lost,
        )
        for scenario in rest:
            if only and scenario.__name__ not in only:
                continue
            try:
                self.table.add(scenario())
            except FAILURES as error:
                name = scenario.__name__.replace("_", " ")
                said = f"{type(error).__name__}: {error} {self.release.trouble()}"
                self.table.add(Row(name, "", " ".join(said.split()).replace("|", "/")[:1500]))
