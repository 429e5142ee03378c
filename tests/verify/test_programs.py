"""A suite's program is believed only where its report and its end say the same, and something was checked."""

import sys
from pathlib import Path

import pytest

from timestep.verify.programs import judged
from timestep.verify.results import Result
from timestep.verify.target import Target

TARGET = Target("http://127.0.0.1:9", "none", "none")
PASSED, SKIPPED = '<testcase name="good"/>', '<testcase name="left"><skipped/></testcase>'
FAILED = '<testcase name="bad"><failure message="no, not so"/></testcase>'


def ran(folder: Path, cases: str, end: str, timeout: float = 60) -> Result:
    report = folder / "report.xml"
    written = f"<testsuite>{cases}</testsuite>"
    program = f"import pathlib, sys, time; pathlib.Path('report.xml').write_text({written!r}); print('said'); {end}"
    return judged("suite", [sys.executable, "-u", "-c", program], report, TARGET, timeout)


@pytest.mark.parametrize(
    ("cases", "end", "failures"),
    [
        (PASSED, "", []),
        (PASSED + SKIPPED, "sys.exit(0)", []),
        (PASSED + FAILED, "sys.exit(1)", ["no, not so"]),
        ("", "", ["It has checked nothing. said"]),
        (SKIPPED, "", ["Not one check has passed. said"]),
        (FAILED, "sys.exit(1)", ["no, not so", "Not one check has passed. said"]),
        (PASSED, "sys.exit(1)", ["It ended with exit code 1, which its report doesn't explain. said"]),
        (FAILED, "sys.exit(3)", ["no, not so", "It ended with exit code 3, which its report doesn't explain. said"]),
    ],
)
def test_a_report_that_is_not_the_whole_story_is_a_failure(
    cases: str, end: str, failures: list[str], tmp_path: Path
) -> None:
    assert [check.detail for check in ran(tmp_path, cases, end).failures] == failures


def test_a_program_that_runs_too_long_has_failed_whatever_it_has_reported(tmp_path: Path) -> None:
    result = ran(tmp_path, PASSED, "time.sleep(60)", timeout=2)
    assert [check.detail for check in result.failures] == ["It ran longer than 2 s. said"]
    assert result.count("passed") == 1


def test_a_program_without_a_report_has_failed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such thing')"]
    assert judged("suite", command, tmp_path / "report.xml", TARGET, 60).failures[0].detail == "no such thing"
