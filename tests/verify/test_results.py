"""Reports become checks, exceptions are named with their reason, and the table shows both."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from timestep.errors import NotFoundError
from timestep.verify import junit
from timestep.verify.catalog import SUITES, chosen
from timestep.verify.environments import REQUIREMENTS
from timestep.verify.exceptions import Exceptions
from timestep.verify.results import Check, Result
from timestep.verify.table import show

REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="folder.test_chat.TestModel" name="test_good"/>
<testcase classname="test_chat" name="test_bad"><failure message="assert 1 == 2">Traceback</failure></testcase>
<testcase classname="test_chat" name="test_left"><skipped message="no images"/></testcase>
<testcase classname="test" name="chat: streams"><failure message="the &amp;quot;end&amp;quot; is missing"/></testcase>
<testcase name="GET /v1/models"><failure message="ST101">Server error</failure></testcase>
</testsuite></testsuites>"""


def test_a_junit_report_is_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert junit.read(report) == [
        Check("TestModel::test_good", "passed"),
        Check("test_chat::test_bad", "failed", "assert 1 == 2"),
        Check("test_chat::test_left", "skipped", "no images"),
        Check("chat: streams", "failed", 'the "end" is missing'),
        Check("GET /v1/models", "failed", "ST101 Server error"),
    ]


def test_an_exception_counts_apart_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "exceptions.toml"
    file.write_text('[[exception]]\nsuite = "chat"\ncheck = "test_tool*"\nreason = "too small"\n')
    result = Result("chat", [Check("test_tools", "failed", "no call"), Check("test_text", "failed", "no text")])
    judged = Exceptions.load(file).apply(result, scripted=False)
    assert [check.outcome for check in judged.checks] == ["excepted", "failed"]
    assert judged.checks[0].detail == "too small" and [check.name for check in judged.failures] == ["test_text"]
    assert Exceptions.load(file).apply(result, scripted=True) == result


def test_the_exceptions_name_suites_that_exist() -> None:
    assert {suite for suite, *_ in Exceptions.load().known} <= set(SUITES)


def test_the_table_shows_counts_figures_and_why() -> None:
    result = Result("load", [Check("no 5xx", "failed", "3 were"), Check("ends", "passed")], 12.3, {"p95 chat": "80 ms"})
    output = io.StringIO()
    show([result], Console(file=output, width=120))
    row = next(line for line in output.getvalue().splitlines() if line.startswith("load"))
    assert row.split() == ["load", "1", "1", "0", "0", "12.3", "p95", "chat", "80", "ms"]
    assert "failed  load  no 5xx: 3 were" in output.getvalue()


def test_an_unknown_suite_is_named() -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'openai-js'"):
        chosen(["openai-jss"])


def test_every_lock_file_answers_its_requirements() -> None:
    for requirements in REQUIREMENTS.glob("*.in"):
        locked = {line.partition("==")[0] for line in requirements.with_suffix(".txt").read_text().splitlines()}
        wanted = {line.partition(">=")[0] for line in requirements.read_text().splitlines() if line}
        assert wanted <= locked, requirements.name
