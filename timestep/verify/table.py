"""What a person reads: one table of all suites, and below it every check that failed."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from timestep.verify.results import Result


def show(results: Sequence[Result], console: Console) -> None:
    """Print the table, the figures within it, then the failures and the exceptions with their reasons."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("suite")
    for name in ("passed", "failed", "excepted", "skipped", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("measured", overflow="fold")
    for result in results:
        counts = [str(result.count(outcome)) for outcome in ("passed", "failed", "excepted", "skipped")]
        counts[1] = f"[red]{counts[1]}[/red]" if result.failures else counts[1]
        figures = ", ".join(f"{name} {value}" for name, value in result.figures.items())
        table.add_row(result.suite, *counts, f"{result.seconds:.1f}", escape(figures))
    console.print(table)
    for outcome in ("failed", "excepted", "skipped"):
        for result in results:
            for check in result.checks:
                if check.outcome == outcome:
                    console.print(
                        f"{outcome}  {result.suite}  {check.name}: {check.detail}", markup=False, soft_wrap=True
                    )
