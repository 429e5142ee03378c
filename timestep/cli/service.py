"""Commands about the service as a whole: up, status, down."""

from pathlib import Path
from typing import Annotated

import typer

from timestep.cli.options import Home, Json, run, settings_of
from timestep.errors import UsageError


def up(
    port: Annotated[int | None, typer.Option(help="Port of the HTTP API.  [default: 8000]")] = None,
    prefect_port: Annotated[int | None, typer.Option(help="Port of the Prefect UI.  [default: 4200]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    home: Home = None,
    agents: Annotated[list[Path] | None, typer.Option(help="Python file of agents; repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: a built-in name, a GGUF path or URL.")] = None,
    database_url: Annotated[str | None, typer.Option(help="PostgreSQL server, instead of the embedded one.")] = None,
    storage_url: Annotated[str | None, typer.Option(help="Object storage, such as s3://bucket?endpoint=….")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything is ready.")] = False,
) -> None:
    """Start the whole service on this machine."""
    from deployments.local import up as start_service

    settings = settings_of(
        port=port,
        prefect_port=prefect_port,
        host=host,
        home=home,
        agents=agents or None,
        model=model,
        database_url=database_url,
        storage_url=storage_url,
    )
    raise typer.Exit(run(start_service(settings, detach=detach)))


def status(home: Home = None, as_json: Json = False) -> None:
    """Say what runs, and where."""
    from deployments.local import status as read_status

    state = read_status(settings_of(home=home))
    if state is None:
        raise UsageError("No service runs. Start one: timestep up")
    if as_json:
        print(state.model_dump_json())
        return
    print("ready" if state.ready else "starting")
    for name, url in state.urls.model_dump().items():
        print(f"  {name:<14} {url}")
    for name, child in state.children.items():
        print(f"  {name:<14} pid {child.pid}, {child.restarts} restarts")


def down(home: Home = None) -> None:
    """Stop the service."""
    from deployments.local import down as stop_service

    if not run(stop_service(settings_of(home=home))):
        raise UsageError("No service runs.")
    print("stopped")
