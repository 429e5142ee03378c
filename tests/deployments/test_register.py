"""What prefect.yaml declares, and what of a person's choices outlives registering again."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from deployments.environment import STORAGE_BLOCK
from deployments.register import declared_deployments, load_flow, merge_schedules, module_entrypoint, with_schedules
from storage.block import DEFAULT_NAME, StorageBlock
from timestep.errors import UsageError

NIGHTLY = {"slug": "nightly", "cron": "0 3 * * *", "timezone": "UTC", "active": False, "parameters": {"mode": "x"}}


def existing(slug: str | None, active: bool, schedule: Any = None) -> DeploymentSchedule:
    schedule = schedule or CronSchedule(cron="0 1 * * *", timezone="UTC")
    return DeploymentSchedule(
        id=uuid4(), deployment_id=uuid4(), slug=slug, active=active, schedule=schedule, parameters={"by": "hand"}
    )


def test_a_new_schedule_is_as_declared() -> None:
    (schedule,) = merge_schedules([NIGHTLY], [])
    assert (schedule.slug, schedule.active, schedule.parameters) == ("nightly", False, {"mode": "x"})
    assert isinstance(schedule.schedule, CronSchedule)
    assert schedule.schedule.cron == "0 3 * * *"


def test_an_existing_schedule_takes_the_declared_time_and_keeps_its_switch() -> None:
    (schedule,) = merge_schedules([NIGHTLY], [existing("nightly", True)])
    assert schedule.active
    assert isinstance(schedule.schedule, CronSchedule)
    assert schedule.schedule.cron == "0 3 * * *"


@pytest.mark.parametrize("slug", [None, "mine"])
def test_a_schedule_added_by_hand_is_kept(slug: str | None) -> None:
    added = existing(slug, True, IntervalSchedule(interval=timedelta(hours=2)))
    merged = merge_schedules([NIGHTLY], [added])
    assert [(s.slug, s.active) for s in merged] == [("nightly", False), (slug, True)]
    assert merged[1].parameters == {"by": "hand"}
    assert merged[1].schedule == added.schedule


def test_intervals_are_seconds() -> None:
    (schedule,) = merge_schedules([{"slug": "often", "interval": 90}], [])
    assert isinstance(schedule.schedule, IntervalSchedule)
    assert schedule.schedule.interval == timedelta(seconds=90)


def test_schedules_of_values_come_after_the_declared_ones_and_are_marked() -> None:
    hourly = {"cron": "0 * * * *", "parameters": {"input": "news"}}
    step, batch = with_schedules(declared_deployments(), {"step": [{"slug": "daily", "interval": 86400}, hourly]})
    first, daily, unnamed = (schedule["slug"] for schedule in step["schedules"])
    assert (first, daily) == ("nightly-training", "values-daily")
    (again, _) = with_schedules(declared_deployments(), {"step": [{**hourly, "active": False}]})
    assert again["schedules"][1]["slug"] == unnamed
    assert [schedule["slug"] for schedule in batch["schedules"]] == ["nightly-batch"]


def test_a_schedule_that_values_dont_declare_any_more_goes() -> None:
    (schedule,) = merge_schedules([NIGHTLY], [existing("values-daily", True)])
    assert schedule.slug == "nightly"


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ({"stepp": []}, "Schedules of 'stepp': no such deployment. Deployments: step, batch."),
        ({"step": [{"slug": "s", "cron": "every day"}]}, "Schedule 's' of 'step' can't be meant: "),
        ({"step": [{"slug": "s", "corn": "0 0 * * *"}]}, "Schedule 's' of 'step' can't be meant: .*corn"),
        ({"step": [{"slug": "s", "cron": "0 0 * * *", "parameters": {"mode": "dream"}}]}, "Schedule 's' .*mode"),
        ({"step": ["0 0 * * *"]}, "Schedule '0 0 . . .' of 'step' can't be meant"),
    ],
)
def test_a_schedule_that_cant_be_meant_is_one_line(schedules: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}") as error:
        with_schedules(declared_deployments(), schedules)
    assert "\n" not in str(error.value)


def test_every_declared_entrypoint_is_a_flow_of_what_is_installed() -> None:
    declared = declared_deployments()
    assert [d["name"] for d in declared] == ["step", "batch"]
    for deployment in declared:
        flow = load_flow(module_entrypoint(deployment["entrypoint"]))
        assert flow.name == deployment["name"]
        for schedule in deployment["schedules"]:
            assert schedule["active"] is False
            flow.validate_parameters(schedule["parameters"])


def test_results_go_to_the_block_that_storage_saves() -> None:
    assert f"{StorageBlock._block_type_slug}/{DEFAULT_NAME}" == STORAGE_BLOCK
