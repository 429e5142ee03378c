"""Commands about the service as a whole: up, status, down."""

from pathlib import Path
from typing import Annotated

import typer

from timestep.cli.options import Home, Json, run, service_of, settings_of
from timestep.errors import UsageError


def up(
    port: Annotated[int | None, typer.Option(help="Port of the HTTP API.  [default: 8000]")] = None,
    prefect_port: Annotated[int | None, typer.Option(help="Port of the Prefect UI.  [default: 4200]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs an API key.")] = None,
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


def serve(
    port: Annotated[int | None, typer.Option(help="Port to listen on.  [default: 8000]")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; any but loopback needs an API key.  [default: 127.0.0.1]")
    ] = None,
    home: Home = None,
    database_url: Annotated[str | None, typer.Option(help="PostgreSQL server of the service.")] = None,
    storage_url: Annotated[str | None, typer.Option(help="Object storage of the service.")] = None,
    prefect_api_url: Annotated[str | None, typer.Option(help="Its Prefect API, such as http://HOST:4200/api.")] = None,
    model_server_url: Annotated[str | None, typer.Option(help="Its model server, such as http://HOST:8001.")] = None,
) -> None:
    """Run the HTTP server alone, over parts that run elsewhere; any number of them may serve one service.

    What is not named is that of the service on this home, where one runs.
    """
    from timestep.server.__main__ import serve as serve_until_told

    settings = service_of(
        home,
        port=port,
        host=host,
        database_url=database_url,
        storage_url=storage_url,
        prefect_api_url=prefect_api_url,
        model_server_url=model_server_url,
    )
    for option, value in {
        "--database-url": settings.database_url,
        "--prefect-api-url": settings.prefect_api_url,
        "--model-server-url": settings.model_server_url,
    }.items():
        if not value:
            variable = f"TIMESTEP_{option[2:].replace('-', '_').upper()}"
            raise UsageError(f"A server alone needs {option} URL, or {variable}. All parts at once: timestep up")
    run(_migrated(settings.database_url))
    serve_until_told(settings)


async def _migrated(database_url: str) -> None:
    from deployments.offline import opened

    async with opened(database_url):
        pass  # its tables are there now


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
