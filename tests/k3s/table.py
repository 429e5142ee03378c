"""What a run showed: a row for each thing that was tried, with its figure; Markdown."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One thing that was tried. ``wrong`` says what was; empty: nothing."""

    what: str
    figure: str
    wrong: str = ""

    def __str__(self) -> str:
        return f"| {self.what} | {self.figure} | {self.wrong or 'ok'} |"


@dataclass
class Table:
    """Rows as they come, each told at once."""

    title: str
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"  {row}", flush=True)

    @property
    def failed(self) -> bool:
        """Whether a row failed, or there is none."""
        return not self.rows or any(row.wrong for row in self.rows)

    def __str__(self) -> str:
        return "\n".join([f"| {self.title} | | |", "|---|---|---|", *map(str, self.rows)])
