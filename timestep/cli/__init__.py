"""The command line, thin: it parses, calls the library, prints. Errors of ours are one line, exit 1."""

import sys
from typing import Annotated, NoReturn

import typer

from timestep.cli import people, running, service, verifying
from timestep.cli.keys import keys
from timestep.errors import TimestepError

app = typer.Typer(
    name="timestep",
    help="Durable workflows for agents that think and learn.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    *(service.up, service.serve, service.status, service.down),
    *(running.step, running.train, running.batch),
    *(people.show, people.approve, people.answer, people.settle, people.resume, people.cancel),
    verifying.verify,
):
    app.command()(command)
app.add_typer(keys, name="keys")


def main() -> NoReturn:
    """Entry point: maps the error tree to one line and an exit code (1, or 2 for usage)."""
    try:
        app(standalone_mode=True)
    except TimestepError as error:
        print(f"timestep: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _version(shown: bool) -> None:
    if shown:
        from importlib.metadata import version

        print(f"timestep {version('timestep')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Durable workflows for agents that think and learn."""
