"""What a run showed: a row for each thing that was tried, with its figure; Markdown."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One thing to try. ``wrong`` says what was; empty: nothing. ``untried`` says why it could not be tried."""

    what: str
    figure: str = ""
    wrong: str = ""
    untried: str = ""

    def __str__(self) -> str:
        end = f"not tried: {self.untried}" if self.untried else "ok"
        return f"| {self.what} | {self.figure} | {self.wrong or end} |"


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
        """Whether a row failed, or nothing was tried."""
        return all(row.untried for row in self.rows) or any(row.wrong for row in self.rows)

    def __str__(self) -> str:
        return "\n".join([f"| {self.title} | | |", "|---|---|---|", *map(str, self.rows)])
