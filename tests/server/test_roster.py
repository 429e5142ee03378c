"""The agents files are imported by a process of its own: once for each change of theirs, also where they fail."""

import os
import time
from pathlib import Path

import pytest

from timestep.errors import TimestepError
from timestep.server.agents import Listing
from timestep.settings import Settings

FAILS = """
from pathlib import Path
with Path(__file__).with_name("imported").open("a") as log:
    log.write("x")
raise ValueError("broken")
"""


async def test_a_file_that_fails_is_imported_anew_once_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agents.py"
    file.write_text(FAILS)
    monkeypatch.setenv("TIMESTEP_HOME", str(tmp_path))
    monkeypatch.setenv("TIMESTEP_AGENTS", str(file))
    listing = Listing(Settings())
    for _ in range(3):
        with pytest.raises(TimestepError, match="broken"):
            await listing.roster()
    assert (tmp_path / "imported").read_text() == "x"
    file.write_text("from agents import Agent\nhelper = Agent(name='helper')\n")
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 10**9))
    assert (await listing.roster()).default == "helper"
