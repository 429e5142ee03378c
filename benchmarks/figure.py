"""What a comparison is given, and a row of the table it makes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from timestep.settings import Settings


@dataclass(frozen=True)
class Bench:
    """A running service: its settings, its environment for child processes, a folder to work in."""

    settings: Settings
    environment: dict[str, str]
    folder: Path


@dataclass(frozen=True)
class Figure:
    """One row: what was measured, the figure, what it is compared with, and the ratio of the two."""

    what: str
    shown: str
    against: str = ""
    ratio: str = ""


def median(values: Sequence[float]) -> float:
    """The median; a benchmark on a shared machine quotes no mean."""
    return statistics.median(values)


def spread(values: Sequence[float], unit: str) -> str:
    """Median with the least and the greatest, such as ``0.21 s (0.19-0.30)``."""
    return f"{median(values):.3g} {unit} ({min(values):.3g}–{max(values):.3g})"
