"""Checks that may fail, by name, each with its reason: exceptions.toml. Knows no suite."""

import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from timestep.verify.results import Check, Result

FILE = Path(__file__).with_name("exceptions.toml")


@dataclass(frozen=True)
class Exceptions:
    """``known``: (suite, pattern of the check's name, whether for a scripted model too, reason)."""

    known: tuple[tuple[str, str, bool, str], ...]

    @classmethod
    def load(cls, file: Path = FILE) -> "Exceptions":
        """From a file like exceptions.toml."""
        entries = tomllib.loads(file.read_text()).get("exception", [])
        return cls(tuple((e["suite"], e["check"], e.get("scripted", False), e["reason"]) for e in entries))

    def apply(self, result: Result, *, scripted: bool) -> Result:
        """The result, its failures that may be counted apart."""
        return replace(result, checks=[self._judge(result.suite, check, scripted) for check in result.checks])

    def _judge(self, suite: str, check: Check, scripted: bool) -> Check:
        if check.outcome != "failed":
            return check
        for of, pattern, even_scripted, reason in self.known:
            if of == suite and fnmatchcase(check.name, pattern) and (even_scripted or not scripted):
                return replace(check, outcome="excepted", detail=reason)
        return check
