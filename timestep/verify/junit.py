"""Reads JUnit reports, in which pytest, Node and Schemathesis alike say what came of each test."""

import html
from pathlib import Path
from xml.etree import ElementTree

from timestep.verify.results import Check

LONGEST = 600  # characters of a failure's text


def read(report: Path) -> list[Check]:
    """The report's checks, in its order. ElementTree.ParseError, OSError: it is none."""
    return [_check(case) for case in ElementTree.parse(report).iter("testcase")]  # of a program that we started


def _check(case: ElementTree.Element) -> Check:
    group, name = case.get("classname", "").rpartition(".")[2], case.get("name", "")
    name = f"{group}::{name}" if group not in ("", "test") else name  # "test" is Node's for all of them
    for child in case:
        if child.tag in ("failure", "error"):
            message = child.get("message") or ""
            # Schemathesis' messages are bare codes; pytest's say it all, and its text is the traceback.
            return Check(name, "failed", _short(message if " " in message else f"{message} {child.text or ''}"))
        if child.tag == "skipped":
            return Check(name, "skipped", _short(child.get("message") or ""))
    return Check(name, "passed")


def _short(text: str) -> str:
    text = " ".join(html.unescape(text).split())  # Node escapes twice
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
