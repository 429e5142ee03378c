"""The command that lets other people's suites judge a running service: verify."""

import json
from typing import Annotated, Any

import typer

from timestep.cli.options import Home, Json, settings_of


def verify(
    url: Annotated[str | None, typer.Option(help="The service.  [default: the one on this machine]")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="Run only this one; repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask.  [default: scripted where served]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most cases of bfcl, examples of schemathesis.")] = None,
    seconds: Annotated[int | None, typer.Option(min=1, help="Length of the load profile.  [default: 120]")] = None,
    key: Annotated[str | None, typer.Option(help="API key that may do everything.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run the suites that judge a service over HTTP, and print one table; exit code 1 where a check failed."""
    from dataclasses import replace

    import platformdirs
    from rich.console import Console

    from timestep.verify.catalog import chosen
    from timestep.verify.exceptions import Exceptions
    from timestep.verify.programs import run
    from timestep.verify.table import show
    from timestep.verify.target import find

    settings = settings_of(home=home)
    suites, exceptions = chosen(suite or []), Exceptions.load()
    own_url, own_key = _running(settings)
    target = find(url or own_url, model, settings.embedding_model, key or (None if url else own_key))
    target = replace(target, limit=limit, seconds=seconds)
    # The user's, not the home's: the environments are the same for every service.
    cache = platformdirs.user_cache_path("timestep", appauthor=False) / "verify"
    progress, results = Console(stderr=True, highlight=False), []
    for one in suites:
        progress.print(f"{one.name}: {one.about}", style="dim", soft_wrap=True)
        results.append(exceptions.apply(run(one, target, cache), scripted=target.scripted))
    if as_json:
        print(json.dumps([result.dump() for result in results]))
    else:
        output = Console(highlight=False)
        # Not a terminal: 80 columns, which rich takes then, would fold the figures.
        show(results, output if output.is_terminal else Console(highlight=False, width=200))
    if any(result.failures for result in results):
        raise typer.Exit(1)


def _running(settings: Any) -> tuple[str, str | None]:
    """Where this machine's service answers, or would, and its own key."""
    from deployments import service_key
    from deployments.local import status

    state, key = status(settings), service_key.known(settings)
    return str(state.urls.api if state else settings.address), key.get_secret_value() if key else None
